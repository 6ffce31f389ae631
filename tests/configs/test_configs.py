"""Every config builds and does what its name says; one of each kind trains on generated data."""

import re

import pytest
import torch
from helpers.coco import write_coco
from helpers.models import ROOT, write_images
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

CONFIGS = sorted(path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').glob('[!_]*/*.py'))
SUPERVISED = [name for name in CONFIGS if re.fullmatch(r'mobile_former/.*_in1k\.py', name)]
# The authors' learning rate, weight decay, dropout, mixup and random erasing.
RECIPES = dict.fromkeys(('508m', '294m', '285m'), (1e-3, 0.20, 0.3, True, True)) | {
    '214m': (9e-4, 0.15, 0.2, True, True),
    '151m': (9e-4, 0.10, 0.2, True, True),
    '96m': (8e-4, 0.10, 0.2, False, False),
    '52m': (8e-4, 0.10, 0.2, True, False),
    '26m': (8e-4, 0.08, 0.1, True, False),
}


def read(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


def build_model(cfg: Config):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds_and_matches_its_name(name):
    cfg = read(name)
    assert cfg.custom_imports['imports'] == ['qbheat_mm']
    assert cfg.load_from is None
    assert cfg.resume is False
    assert 'custom_hooks' not in cfg  # unlike default_hooks, these cannot be overridden by name
    model = build_model(cfg)
    probes = ('frozen', 'linear', 'tran-')
    assert any(each in name for each in probes) <= all(not p.requires_grad for p in model.backbone.parameters())
    if 'in1k' in name and 'detection' not in name:  # the name says 8 GPUs; the learning rate scales for others
        batch = int(name.split('_8xb')[1].split('-')[0])
        assert cfg.train_dataloader.batch_size == batch
        assert cfg.auto_scale_lr == dict(base_batch_size=8 * batch, enable=True)
    epochs = re.search(r'-(\d+)e(-knn)?_', name)
    assert not epochs or cfg.train_cfg.max_epochs == int(epochs[1]) == cfg.param_scheduler[-1]['end']


@pytest.mark.parametrize('size', RECIPES)
def test_supervised_config_is_the_recipe(size):
    assert len(SUPERVISED) == len(RECIPES)
    cfg = read(f'mobile_former/mobile-former-{size}_8xb128-coslr-450e_in1k.py')
    lr, weight_decay, dropout, mixup, erasing = RECIPES[size]
    assert cfg.model.backbone.arch == size
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=weight_decay, fused=True)
    assert cfg.model.head.dropout == dropout
    assert (cfg.model.train_cfg is not None) == mixup
    steps = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert ('RandomErasing' in steps) == erasing
    assert 'RandAugment' in steps


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Two class folders, as DATA_ROOT."""
    for i, wnid in enumerate(('n01440764', 'n01443537')):
        write_images(tmp_path / 'data' / 'train' / wnid, 2, size=80, seed=i)
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'data'))
    return tmp_path / 'data'


def train_two_steps(cfg: Config, work_dir) -> Runner:
    """Train two batches of two images, in float32 and without validation."""
    no_evaluation = {
        f'{split}_{part}': None for split in ('val', 'test') for part in ('cfg', 'dataloader', 'evaluator')
    }
    loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, _delete_=True)
    cfg.merge_from_dict(dict(work_dir=str(work_dir), train_cfg=train_cfg, train_dataloader=loader) | no_evaluation)
    if cfg.train_dataloader.dataset.pop('split', None):  # ImageNet's own class needs all 1,000 folders
        cfg.train_dataloader.dataset.update(type='ImageFolderDataset', data_prefix='train')
    cfg.optim_wrapper.type = 'OptimWrapper'  # AmpOptimWrapper asserts a GPU
    cfg.experiment_name = work_dir.name
    DefaultScope._instance_dict.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())
    return runner


@pytest.mark.parametrize(
    'name',
    [
        'qbheat/qbheat_mobile-former-294m_8xb128-amp-coslr-200e_in1k.py',
        'qbheat/qbheat-hog_mobile-former-52m_1xb64-coslr-100e_folder.py',
        'mobile_former/mobile-former-26m_8xb128-coslr-450e_in1k.py',
    ],
)
def test_pretraining_takes_data_root_from_the_environment_and_trains(name, images, tmp_path):
    cfg = read(name)
    assert cfg.train_dataloader.dataset.data_root == str(images)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'before.pth')
    cfg.load_from = str(tmp_path / 'before.pth')
    tokens = train_two_steps(cfg, tmp_path / 'run').model.backbone.tokens
    assert not torch.equal(tokens, torch.load(cfg.load_from)['state_dict']['backbone.tokens'])


@pytest.mark.parametrize(
    'name',
    [
        'benchmarks/mobile-former-294m_8xb128-linear-coslr-90e_in1k.py',
        'detection/detr_mobile-former-294m-frozen_8xb2-150e_coco.py',
    ],
)
def test_frozen_backbone_is_loaded_and_stays_as_it_is(name, images, tmp_path):
    stored = build_model(read('qbheat/qbheat_mobile-former-294m_8xb128-amp-coslr-200e_in1k.py')).state_dict()
    torch.save(dict(state_dict=stored), tmp_path / 'pretrained.pth')
    cfg = read(name)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'pretrained.pth')
    if cfg.default_scope == 'mmdet':
        write_coco(images, size=96)
        load, pack = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
        cfg.train_dataloader.dataset.pipeline = [load, dict(type='LoadAnnotations', with_bbox=True), pack]
    else:
        cfg.model.head.num_classes = 2
    for key, value in train_two_steps(cfg, tmp_path / 'run').model.backbone.state_dict().items():
        assert torch.equal(value, stored['backbone.' + key]), key


def test_every_task_of_the_documentation_leads_to_a_config():
    table = (ROOT / 'docs/configs.md').read_text().partition('\n\n## ')[0]
    links = [re.findall(r'\(\.\./configs/(\S+\.py)\)', row) for row in table.splitlines() if row.startswith('| ')][1:]
    assert len(links) > 20
    assert all(row and all((ROOT / 'configs' / link).is_file() for link in row) for row in links)
