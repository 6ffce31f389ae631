"""A user's own folder with a config of theirs on the packages' installed configs, run by the packages' own tools."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.coco_layout import write_coco
from helpers.models import build_qbheat, qbheat_config, write_images
from helpers.runs import run

PRETRAINING = """
_base_ = '{base}mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'
custom_imports = dict(imports=['qbheat_mm'], allow_failed_imports=False)
model = dict(_delete_=True, **{model})
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='QuarterMask'),
    dict(type='PackInputs', meta_keys=('img_path', 'visible_origin')),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    # `mmpretrain::` writes a _scope_ into the inherited one, which mmengine hands on to the function
    collate_fn=dict(_delete_=True, type='default_collate'),
    dataset=dict(_delete_=True, type='ImageFolderDataset', data_root='{data}', with_label=False, pipeline=pipeline),
)
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=2)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=2),
    logger=dict(interval=1),
    plain_checkpoint=dict(type='PlainCheckpointHook'),
)
"""

DETECTION = """
_base_ = '{base}detr/detr_r50_8xb2-150e_coco.py'
custom_imports = dict(imports=['qbheat_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.MobileFormer',
        arch={arch},
        output_stride=16,
        frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint='{checkpoint}', prefix='backbone.'),
    ),
    neck=dict(in_channels=[20]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
loader = dict(batch_size=2, num_workers=1, dataset=dict(data_root='{data}/', pipeline=pipeline))
train_dataloader = loader
val_dataloader = loader
val_evaluator = dict(ann_file='{data}/annotations/instances_val2017.json')
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=2),
    logger=dict(interval=1),
    plain_checkpoint=dict(type='mmpretrain.PlainCheckpointHook'),
)
"""


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


def write_config(folder: Path, text: str) -> None:
    (folder / 'mine').mkdir()
    (folder / 'mine' / 'config.py').write_text(text)


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
    write_config(tmp_path, PRETRAINING.format(base=base, model=qbheat_config(), data=tmp_path / 'photos'))
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
    text = DETECTION.format(
        base='mmdet::' if by_name else installed_configs('mmdet'),
        arch=qbheat_config()['backbone']['arch'],
        checkpoint=tmp_path / 'pretrained.pth',
        data=write_coco(tmp_path / 'coco'),
    )
    write_config(tmp_path, text)
    output = train(command(tool, 'mmdet'), tmp_path)
    assert 'coco/bbox_mAP' in output
    saved = torch.load(tmp_path / 'elsewhere' / 'run' / 'iter_2.pth', weights_only=True)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(saved['state_dict'][f'backbone.{key}'], value), key
