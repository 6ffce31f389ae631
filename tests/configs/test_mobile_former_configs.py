import re

import numpy as np
import pytest
import torch
import yaml
from helpers.models import ROOT, load_script
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image

import qbheat_mm  # noqa: F401

CONFIGS = sorted((ROOT / 'configs/mobile_former').glob('*_in1k.py'))
# learning rate, weight decay, dropout; mixup and random erasing: what the authors publish
RECIPES = {
    '508m': (1e-3, 0.20, 0.3, True, True),
    '294m': (1e-3, 0.20, 0.3, True, True),
    '285m': (1e-3, 0.20, 0.3, True, True),
    '214m': (9e-4, 0.15, 0.2, True, True),
    '151m': (9e-4, 0.10, 0.2, True, True),
    '96m': (8e-4, 0.10, 0.2, False, False),
    '52m': (8e-4, 0.10, 0.2, True, False),
    '26m': (8e-4, 0.08, 0.1, True, False),
}


def size_of(path):
    return re.fullmatch(r'mobile-former-(\d+m)_8xb128-coslr-450e_in1k', path.stem)[1]


def test_there_is_a_config_for_every_size():
    assert {size_of(path) for path in CONFIGS} == set(RECIPES)


@pytest.mark.parametrize('path', CONFIGS, ids=size_of)
def test_config_is_the_recipe(path):
    size = size_of(path)
    cfg = Config.fromfile(path)
    lr, weight_decay, dropout, mixup, erasing = RECIPES[size]
    assert cfg.model.backbone.arch == size
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=weight_decay, fused=True)
    assert cfg.model.head.dropout == dropout
    assert (cfg.model.train_cfg is not None) == mixup
    steps = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert ('RandomErasing' in steps) == erasing
    assert 'RandAugment' in steps
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == 450
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize('path', CONFIGS, ids=size_of)
def test_config_builds_what_the_converter_writes_and_the_metafile_says(path):
    converter = load_script('tools/model_converters/mobile_former_to_qbheat_mm.py')
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if (size := size_of(path)) in converter.CLASSIFIER_WIDTHS:
        assert own == dict(converter.layout(size).values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    metafile = load(ROOT / 'configs/mobile_former/metafile.yml')
    (entry,) = [entry for entry in metafile['Models'] if entry['Config'] == str(path.relative_to(ROOT))]
    assert entry['Name'] == path.stem
    assert entry['Metadata']['Parameters'] == parameters
    readme = (ROOT / 'configs/mobile_former/README.md').read_text()
    assert f'({path.name})' in readme
    row = next(line for line in readme.splitlines() if f'({path.name})' in line)
    assert f' {parameters / 1e6:.2f} ' in row
    assert f' {entry["Metadata"]["FLOPs"] / 1e6:.1f} ' in row


def test_metafile_counts_flops_as_the_tool_does():
    get_flops = load_script('tools/analysis_tools/get_flops.py')
    metafile = yaml.safe_load((ROOT / 'configs/mobile_former/metafile.yml').read_text())
    entries = [entry for entry in metafile['Models'] if entry['Config'].endswith('_in1k.py')]
    assert len(entries) == len(CONFIGS)
    for entry in entries:
        cfg = Config.fromfile(ROOT / entry['Config'])
        assert get_flops.report(get_flops.build_model(cfg), (224, 224))['total'][1] == entry['Metadata']['FLOPs']


def test_smallest_config_trains_on_images(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder in ('one', 'two'):
        (tmp_path / 'train' / folder).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
            image.save(tmp_path / 'train' / folder / f'{i}.png')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    cfg = Config.fromfile(ROOT / 'configs/mobile_former/mobile-former-26m_8xb128-coslr-450e_in1k.py')
    cfg.work_dir = str(tmp_path / 'work')
    dataset = cfg.train_dataloader.dataset
    assert dataset.data_root == str(tmp_path)
    dataset.update(type='CustomDataset', data_prefix='train', with_label=True)
    dataset.pop('split')
    dataset.pipeline[1].scale = 32
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.visualizer = None
    cfg.experiment_name = tmp_path.name
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.tokens.detach().clone()
    runner.train()
    assert runner.iter == 2
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())
    assert not torch.equal(runner.model.backbone.tokens, before)
