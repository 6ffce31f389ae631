"""A user's own folder with a config of theirs on the packages' installed configs, run by the packages' own tools."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.coco import detection_pipeline, write_coco
from helpers.models import build_qbheat, qbheat_config, write_images
from helpers.runs import image_loader, run, write_config

OURS = dict(imports=['qbheat_mm'], allow_failed_imports=False)
CHECKPOINT = dict(by_epoch=False, interval=2)


def pretraining(photos: Path) -> dict:
    """On mmpretrain's MoCo-v2."""
    dataset = dict(image_loader(photos)['dataset'], _delete_=True)
    return dict(
        custom_imports=OURS,
        model=dict(qbheat_config(), _delete_=True),
        # `mmpretrain::` writes a _scope_ into the inherited collate_fn, which mmengine hands on to the function
        train_dataloader=dict(
            batch_size=4, num_workers=1, collate_fn=dict(_delete_=True, type='default_collate'), dataset=dataset
        ),
        train_cfg=dict(_delete_=True, by_epoch=False, max_iters=2),
        default_hooks=dict(
            checkpoint=CHECKPOINT, logger=dict(interval=1), plain_checkpoint=dict(type='PlainCheckpointHook')
        ),
    )


def detection(coco: Path, checkpoint: Path) -> dict:
    """On mmdet's DETR."""
    backbone = dict(
        _delete_=True,
        type='mmpretrain.MobileFormer',
        arch=qbheat_config()['backbone']['arch'],
        output_stride=16,
        frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.'),
    )
    dataset = dict(data_root=f'{coco}/', pipeline=detection_pipeline(96))
    loader = dict(batch_size=2, num_workers=1, dataset=dataset)
    return dict(
        custom_imports=OURS,
        model=dict(
            backbone=backbone, neck=dict(in_channels=[20]), encoder=dict(num_layers=1), decoder=dict(num_layers=1)
        ),
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=dict(ann_file=f'{coco}/annotations/instances_val2017.json'),
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        default_hooks=dict(
            checkpoint=CHECKPOINT, logger=dict(interval=1), plain_checkpoint=dict(type='mmpretrain.PlainCheckpointHook')
        ),
    )


def installed_configs(package: str) -> str:
    """Where a package keeps its configs, with the slash."""
    folder = Path(find_spec(package).origin).parent / '.mim' / 'configs'
    if not folder.is_dir():
        pytest.skip(f'{package} is installed without its configs')
    return f'{folder}/'


def is_onedl() -> bool:
    """Which family is installed; only distributions tell, and `mim` goes by them."""
    try:
        distribution('onedl-mmengine')
    except PackageNotFoundError:
        return False
    return True


def command(tool: str, package: str) -> list[str]:
    """The packages' own ways to train, as typed in a shell."""
    if tool == 'train.py':
        return [sys.executable, str(Path(installed_configs(package)).parent / 'tools' / 'train.py')]
    mim = Path(sys.executable).with_name('mim')
    if not mim.exists():
        pytest.skip('`mim` is not installed; requirements/mim_*.txt name the one for each family')
    names = dict(mmdet='onedl-mmdetection', mmpretrain='onedl-mmpretrain') if is_onedl() else {}
    return [str(mim), 'train', names.get(package, package)]


def train(command: list[str], folder: Path) -> str:
    """Train with the config in ``folder`` from another working directory; the output."""
    elsewhere = folder / 'elsewhere'
    elsewhere.mkdir()
    return run(*command, '../mine/config.py', '--work-dir', 'run', cwd=elsewhere, CUDA_VISIBLE_DEVICES='-1')


def mine(folder: Path) -> Path:
    (folder / 'mine').mkdir()
    return folder / 'mine'


EVERY_WAY = pytest.mark.parametrize(
    ('tool', 'by_name'),
    [('train.py', False), ('train.py', True), ('mim', False)],
    ids=['train.py', 'train.py-package::', 'mim'],
)


@pytest.mark.slow
@EVERY_WAY
def test_qbheat_in_an_mmpretrain_tree(tool, by_name, tmp_path):
    write_images(tmp_path / 'photos', 8)
    base = 'mmpretrain::' if by_name else installed_configs('mmpretrain')
    config = f'{base}mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'
    write_config(mine(tmp_path), config, **pretraining(tmp_path / 'photos'))
    output = train(command(tool, 'mmpretrain'), tmp_path)
    assert 'Epoch(train) [1][2/2]' in output
    saved = torch.load(tmp_path / 'elsewhere' / 'run' / 'iter_2.pth', weights_only=True)
    assert any(key.startswith('neck.generator_x') for key in saved['state_dict'])


@pytest.mark.slow
@EVERY_WAY
def test_a_pretrained_backbone_in_an_mmdet_tree(tool, by_name, tmp_path):
    pytest.importorskip('mmdet')
    model = build_qbheat()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'pretrained.pth')
    config = f'{"mmdet::" if by_name else installed_configs("mmdet")}detr/detr_r50_8xb2-150e_coco.py'
    coco = write_coco(tmp_path / 'coco')
    write_config(mine(tmp_path), config, **detection(coco, tmp_path / 'pretrained.pth'))
    output = train(command(tool, 'mmdet'), tmp_path)
    assert 'coco/bbox_mAP' in output
    saved = torch.load(tmp_path / 'elsewhere' / 'run' / 'iter_2.pth', weights_only=True)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(saved['state_dict'][f'backbone.{key}'], value), key
