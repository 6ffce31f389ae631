"""Probes do not change the backbone: no graph, no gradient, no BatchNorm update, bit-identical weights."""

import pytest
import torch
from helpers.models import write_images
from helpers.probes import probe
from mmengine.runner import Runner
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.registry import MODELS

from qbheat_mm.evaluation.functional.knn import collect_features


@pytest.mark.parametrize('kind', ['linear', 'linear-sweep', 'tran-1', 'tran-4'])
def test_probes_do_not_change_the_backbone(probe_data, kind):
    runner = Runner.from_cfg(probe(probe_data, kind))
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
    stored = torch.load(probe_data / 'qbheat.pth')['state_dict']
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, stored['backbone.' + name]), name
    assert all(each.grad is None and not each.requires_grad for each in backbone.parameters())
    learned = set(map(id, runner.optim_wrapper.optimizer.state))
    assert learned == {id(each) for each in runner.model.head.parameters()}


def test_knn_does_not_change_the_model(probe_data):
    cfg = probe(probe_data, 'linear')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    features, labels = collect_features(model, loader)
    assert features.grad_fn is None
    assert labels.tolist() == [0] * 4 + [1] * 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fine_tuning_starts_from_the_checkpoint_and_changes_the_backbone(probe_data):
    runner = Runner.from_cfg(probe(probe_data, 'ft', epochs=1))
    runner.train()
    stored = torch.load(probe_data / 'qbheat.pth')['state_dict']
    distance = (runner.model.backbone.stem[0].weight - stored['backbone.stem.0.weight']).abs().max()
    assert 0 < distance < 0.02  # two steps of AdamW away


def test_a_head_of_another_number_of_classes_is_refused_before_training(probe_data, monkeypatch):
    monkeypatch.setenv('NUM_CLASSES', '3')
    with pytest.raises(ValueError, match=r'train has 2 classes and model\.head\.num_classes is 3'):
        Runner.from_cfg(probe(probe_data, 'linear-sweep')).train()


def test_a_validation_class_that_training_lacks_is_refused_before_training(probe_data):
    write_images(probe_data / 'val' / 'ant', 2)
    with pytest.raises(ValueError, match=r'do not have the same classes .*train lacks ant'):
        Runner.from_cfg(probe(probe_data, 'linear')).train()


def test_a_checkpoint_of_another_architecture_is_refused(probe_data):
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), probe_data / 'qbheat.pth')
    with pytest.raises(RuntimeError, match=r'qbheat\.pth" does not fit MobileFormer\. missing: '):
        Runner.from_cfg(probe(probe_data, 'tran-1')).train()
