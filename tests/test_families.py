"""What a run on one family of OpenMMLab packages writes, a run on the other takes up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.coco import detection_pipeline, write_coco
from helpers.models import ROOT, qbheat_config, write_images
from helpers.runs import image_loader, run, write_config

ENVIRONMENTS = dict(onedl=ROOT / '.venv', openmmlab=ROOT / '.venv-openmmlab')

LOADER = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=detection_pipeline(96)))
PRETRAINING = dict(
    model=qbheat_config(),
    train_dataloader=image_loader('photos'),
    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
    default_hooks=dict(logger=dict(interval=1)),
)
DETR = f'{ROOT}/configs/detection/detr_mobile-former-285m-frozen_8xb2-150e_coco.py'
DETECTION = dict(
    model=dict(
        backbone=dict(arch='52m', output_stride=16, frozen_stages=4, init_cfg=None),
        neck=dict(in_channels=[96]),
        encoder=dict(num_layers=1),
        decoder=dict(num_layers=1),
    ),
    train_dataloader=LOADER,
    val_dataloader=LOADER,
    train_cfg=dict(max_epochs=1, val_interval=1),
    default_hooks=dict(logger=dict(interval=1)),
)


def train(family: str, folder: Path, epochs: int, *options: str) -> dict:
    """Train on that family up to an epoch; the checkpoint that it wrote, and how often each parameter was updated."""
    command = (ENVIRONMENTS[family] / 'bin' / 'python', ROOT / 'tools' / 'train.py', 'config.py', '--work-dir', 'run')
    options += ('--cfg-options', f'train_cfg.max_epochs={epochs}')
    run(*command, *options, cwd=folder, DATA_ROOT='coco', CUDA_VISIBLE_DEVICES='-1')
    return torch.load(folder / 'run' / f'epoch_{epochs}.pth', weights_only=True)


@pytest.mark.second_family
@pytest.mark.parametrize('task', ['pretraining', 'detection'])
@pytest.mark.parametrize(('first', 'second'), [('onedl', 'openmmlab'), ('openmmlab', 'onedl')])
def test_a_run_goes_on_on_the_other_family(first, second, task, tmp_path):
    missing = [str(folder) for folder in ENVIRONMENTS.values() if not (folder / '.complete').is_file()]
    if missing:
        pytest.skip(f'needs both environments, `make setup` and `make test-openmmlab`; not there: {missing}')
    write_images(tmp_path / 'photos', 8)
    write_coco(tmp_path / 'coco')
    if task == 'pretraining':
        write_config(tmp_path, **PRETRAINING)
    else:
        write_config(tmp_path, DETR, **DETECTION)

    before = train(first, tmp_path, 1)
    after = train(second, tmp_path, 2, '--resume')

    assert before['meta']['mmengine_version'] != after['meta']['mmengine_version']
    assert (after['meta']['epoch'], after['meta']['iter']) == (2, 2 * before['meta']['iter'])
    for key, state in after['optimizer']['state'].items():
        assert state['step'] == 2 * before['optimizer']['state'][key]['step'] > 0
    histories = [content['message_hub']['log_scalars']['train/loss']['log_history'] for content in (before, after)]
    assert histories[1][: len(histories[0])] == histories[0]
    for key, value in before['state_dict'].items():
        assert task == 'pretraining' or not key.startswith('backbone.') or torch.equal(value, after['state_dict'][key])
