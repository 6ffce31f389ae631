"""Frozen means frozen: no graph, no gradient, stored statistics, the same bits before and after any probe."""

import pytest
import torch
from helpers.models import ROOT, TINY_ARCH, build_qbheat, write_images
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.registry import MODELS

from qbheat_mm.evaluation.functional.knn import extract_features

BENCHMARKS = ROOT / 'configs/benchmarks'
PROBES = ('linear', 'linear-sweep', 'tran-1', 'tran-4')


@pytest.fixture
def data(tmp_path, monkeypatch):
    for split, seed in (('train', 0), ('val', 9)):
        for i, name in enumerate(('cat', 'dog')):
            write_images(tmp_path / split / name, 4, seed=seed + i)
    torch.save(dict(state_dict=build_qbheat().state_dict()), tmp_path / 'qbheat.pth')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    monkeypatch.setenv('NUM_CLASSES', '2')
    return tmp_path


def probe(data, kind: str) -> Config:
    """A config of the small size, on the tiny backbone."""
    cfg = Config.fromfile(BENCHMARKS / f'mobile-former-52m_1xb128-{kind}-coslr-20e_imagenette.py')
    cfg.model.backbone.arch = TINY_ARCH
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(data / 'qbheat.pth'), prefix='backbone.')
    (cfg.model.head.get('head') or cfg.model.head).in_channels = 20
    if cfg.model.neck:
        cfg.model.neck[1].input_features = 20
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = 2
    cfg.work_dir = str(data / kind)
    cfg.experiment_name = f'{data.name}_{kind}'
    DefaultScope._instance_dict.clear()
    return cfg


@pytest.mark.parametrize('kind', PROBES)
def test_a_probe_leaves_every_bit_of_the_backbone_alone(data, kind):
    runner = Runner.from_cfg(probe(data, kind))
    backbone = runner.model.backbone
    seen = []
    backbone.register_forward_hook(
        lambda module, args, outs: seen.append(
            (
                any(out.grad_fn is not None or out.requires_grad for out in outs),
                any(each.training for each in module.modules() if isinstance(each, _BatchNorm)),
            )
        )
    )
    runner.train()
    assert runner.iter == 4
    assert seen
    assert not any(flag for flags in seen for flag in flags)
    stored = torch.load(data / 'qbheat.pth')['state_dict']
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, stored['backbone.' + name]), name
    assert all(each.grad is None and not each.requires_grad for each in backbone.parameters())
    learned = set(map(id, runner.optim_wrapper.optimizer.state))
    assert learned == {id(each) for each in runner.model.head.parameters()}


def test_knn_leaves_every_bit_of_the_model_alone(data):
    cfg = probe(data, 'linear')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    features, labels = extract_features(model, loader)
    assert features.grad_fn is None
    assert labels.tolist() == [0] * 4 + [1] * 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fine_tuning_starts_from_the_checkpoint_and_moves_the_backbone(data):
    cfg = Config.fromfile(BENCHMARKS / 'mobile-former-52m_1xb128-ft-coslr-12e_imagenette.py')
    linear = probe(data, 'linear')
    cfg.model.backbone.update(arch=TINY_ARCH, init_cfg=linear.model.backbone.init_cfg)
    cfg.model.head.in_channels = 20
    cfg.train_dataloader = linear.train_dataloader
    cfg.val_dataloader = linear.val_dataloader
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.experiment_name = str(data / 'ft'), f'{data.name}_ft'
    runner = Runner.from_cfg(cfg)
    runner.train()
    stored = torch.load(data / 'qbheat.pth')['state_dict']
    distance = (runner.model.backbone.stem[0].weight - stored['backbone.stem.0.weight']).abs().max()
    assert 0 < distance < 0.02  # two steps of AdamW away


def test_a_head_of_another_number_of_classes_is_refused_before_training(data, monkeypatch):
    monkeypatch.setenv('NUM_CLASSES', '3')
    with pytest.raises(ValueError, match=r'train has 2 classes and model\.head\.num_classes is 3'):
        Runner.from_cfg(probe(data, 'linear-sweep')).train()


def test_a_validation_class_that_training_lacks_is_refused_before_training(data):
    write_images(data / 'val' / 'ant', 2)
    with pytest.raises(ValueError, match=r'do not have the same classes .*train lacks ant'):
        Runner.from_cfg(probe(data, 'linear')).train()


def test_a_checkpoint_of_another_architecture_is_refused(data):
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), data / 'qbheat.pth')
    with pytest.raises(RuntimeError, match=r'qbheat\.pth" does not fit MobileFormer\. missing: '):
        Runner.from_cfg(probe(data, 'tran-1')).train()
