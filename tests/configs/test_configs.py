"""Every config builds; the large ones take a step on generated data."""

import json
import re

import pytest
import torch
from helpers.models import ROOT, write_images
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner

CONFIGS = sorted(
    path.relative_to(ROOT / 'configs').as_posix()
    for path in (ROOT / 'configs').rglob('*.py')
    if not path.relative_to(ROOT / 'configs').as_posix().startswith('_base_')
)


def build_model(cfg: Config):
    if cfg.default_scope == 'mmdet':
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)
    else:
        from mmpretrain.registry import MODELS
    DefaultScope._instance_dict.clear()
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds_and_names_its_imports(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    assert cfg.custom_imports['imports'] == ['qbheat_mm']
    assert cfg.load_from is None
    assert cfg.resume is False
    model = build_model(cfg)
    probes = ('frozen', 'linear', 'tran-')
    assert any(each in name for each in probes) <= all(not p.requires_grad for p in model.backbone.parameters())
    if 'in1k' in name and 'detection' not in name:  # 8 GPUs by name, any other number by itself
        batch = int(name.split('_8xb')[1].split('-')[0])
        assert cfg.train_dataloader.batch_size == batch
        assert cfg.auto_scale_lr == dict(base_batch_size=8 * batch, enable=True)
    epochs = re.search(r'-(\d+)e(-knn)?_', name)
    assert not epochs or cfg.train_cfg.max_epochs == int(epochs[1]) == cfg.param_scheduler[-1]['end']


def run_two_steps(cfg: Config, work_dir, **overrides) -> Runner:
    """Train two small batches of the config, in float32."""
    cfg.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, _delete_=True),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            test_cfg=None,
            test_dataloader=None,
            test_evaluator=None,
            **{'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0},
            **{'train_dataloader.persistent_workers': False},
            **overrides,
        )
    )
    cfg.optim_wrapper.type = 'OptimWrapper'  # AmpOptimWrapper asserts a GPU
    cfg.experiment_name = work_dir.name
    DefaultScope._instance_dict.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    return runner


def test_in1k_pretraining_takes_a_step(tmp_path, monkeypatch):
    write_images(tmp_path / 'imagenet' / 'train' / 'n01440764', 4, size=80)
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'imagenet'))
    cfg = Config.fromfile(ROOT / 'configs/qbheat/qbheat_mobile-former-294m_8xb128-amp-coslr-200e_in1k.py')
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    run_two_steps(cfg, tmp_path / 'in1k')


def test_in1k_linear_probe_takes_a_step_and_leaves_the_backbone_alone(tmp_path, monkeypatch):
    for i, wnid in enumerate(('n01440764', 'n01443537')):
        write_images(tmp_path / 'imagenet' / 'train' / wnid, 2, size=80, seed=i)
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'imagenet'))
    cfg = Config.fromfile(ROOT / 'configs/benchmarks/mobile-former-294m_8xb128-linear-coslr-90e_in1k.py')
    pretrain = Config.fromfile(ROOT / 'configs/qbheat/qbheat_mobile-former-294m_8xb128-amp-coslr-200e_in1k.py')
    stored = build_model(pretrain).state_dict()
    torch.save(dict(state_dict=stored), tmp_path / 'pretrained.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    cfg.train_dataloader.dataset.pop('split')  # ImageNet's own class wants all 1,000 folders
    cfg.train_dataloader.dataset.update(type='ImageFolderDataset', data_prefix='train')
    cfg.model.head.num_classes = 2
    runner = run_two_steps(cfg, tmp_path / 'probe')
    for name, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, stored['backbone.' + name]), name


def test_folder_pretraining_takes_data_root_from_the_environment(tmp_path, monkeypatch):
    write_images(tmp_path / 'photos' / 'any' / 'depth', 4, size=80)
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'photos'))
    cfg = Config.fromfile(ROOT / 'configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py')
    run_two_steps(cfg, tmp_path / 'folder')


def write_coco(folder, count: int = 4, size: int = 96, splits=('train', 'val')):
    """Generated images with one box each, in COCO's layout."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    (folder / 'annotations').mkdir(parents=True)
    for split in splits:
        paths = write_images(folder / f'{split}2017', count, size=size)
        images = [dict(id=i, file_name=path.name, width=size, height=size) for i, path in enumerate(paths)]
        boxes = [
            dict(id=i + 1, image_id=i, category_id=i + 1, bbox=[10, 20, 40, 30], area=1200, iscrowd=0)
            for i in range(count)
        ]
        content = dict(images=images, annotations=boxes, categories=categories)
        (folder / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))
    return folder


def test_detr_on_the_frozen_backbone_takes_a_step_and_leaves_it_alone(tmp_path, monkeypatch):
    monkeypatch.setenv('DATA_ROOT', str(write_coco(tmp_path / 'coco')))
    cfg = Config.fromfile(ROOT / 'configs/detection/detr_mobile-former-294m-frozen_8xb2-150e_coco.py')
    pretrain = Config.fromfile(ROOT / 'configs/qbheat/qbheat_mobile-former-294m_8xb128-amp-coslr-200e_in1k.py')
    stored = build_model(pretrain).state_dict()
    torch.save(dict(state_dict=stored), tmp_path / 'pretrained.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    small = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(96, 96), keep_ratio=True),
        dict(type='PackDetInputs'),
    ]
    runner = run_two_steps(cfg, tmp_path / 'detr', **{'train_dataloader.dataset.pipeline': small})
    for name, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, stored['backbone.' + name]), name
