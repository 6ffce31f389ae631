import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from qbheat_mm.engine.optimizers import trainable_params_optim_wrapper_constructor as constructor


class Model(nn.Module):
    """A backbone of two layers, of which any can be frozen, and a head."""

    def __init__(self, frozen: tuple[str, ...] = ('backbone.0', 'backbone.1')):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning, by mmengine's constructor too."""
    logged = []

    def log(message, logger=None, level=20):
        if level >= 30:
            logged.append(message)

    monkeypatch.setattr(constructor, 'print_log', log)
    monkeypatch.setattr('mmengine.optim.optimizer.default_constructor.print_log', log)
    return logged


def build(model, constructor='TrainableParamsOptimWrapperConstructor', optimizer='AdamW', **paramwise):
    cfg = dict(constructor=constructor, optimizer=dict(type=optimizer, lr=0.1, weight_decay=0.01))
    return build_optim_wrapper(model, cfg | (dict(paramwise_cfg=paramwise) if paramwise else {}))


def parameters(wrapper) -> set[int]:
    return {id(parameter) for group in wrapper.optimizer.param_groups for parameter in group['params']}


def settings(wrapper) -> dict[int, dict]:
    """Of each parameter."""
    return {
        id(parameter): {**group, 'params': None}
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }


HEAD_TWICE = dict(custom_keys={'head': dict(lr_mult=2.0)})


@pytest.mark.parametrize('paramwise', [{}, HEAD_TWICE, dict(norm_decay_mult=0.0)])
def test_the_optimizer_holds_what_trains_and_keeps_state_for_it_alone(paramwise, warnings):
    model = Model()
    wrapper = build(model, **paramwise)
    assert parameters(wrapper) == {id(parameter) for parameter in model.head.parameters()}
    wrapper.update_params(model(torch.ones(4, 3)).sum())
    assert set(wrapper.optimizer.state) == set(model.head.parameters())
    assert warnings == []
    if paramwise is HEAD_TWICE:
        assert {group['lr'] for group in wrapper.optimizer.param_groups} == {0.2}


def test_mmengines_own_constructor_would_not_do(warnings):
    model = Model()
    assert parameters(build(model, constructor='DefaultOptimWrapperConstructor')) > {
        id(parameter) for parameter in model.head.parameters()
    }
    build(model, constructor='DefaultOptimWrapperConstructor', **HEAD_TWICE)
    assert len(warnings) == 4


def test_without_anything_frozen_it_is_mmengines_own(warnings):
    torch.manual_seed(0)
    paramwise = dict(norm_decay_mult=0.0, custom_keys={'backbone': dict(lr_mult=0.1)})
    model = Model(frozen=())
    found, expected = (
        build(model, name, **paramwise)
        for name in ('TrainableParamsOptimWrapperConstructor', 'DefaultOptimWrapperConstructor')
    )
    assert settings(found) == settings(expected)
    assert warnings == []


def test_a_learning_rate_for_a_frozen_backbone_is_told_once(warnings):
    build(Model(), custom_keys={'backbone': dict(lr_mult=0.1), 'head': dict(lr_mult=1.0)})
    assert len(warnings) == 1
    assert "'backbone'" in warnings[0]
    assert "'head'" not in warnings[0]
    assert 'frozen' in warnings[0]


@pytest.mark.parametrize(
    ('frozen', 'custom_keys'),
    [
        (('backbone.0',), {'backbone': dict(lr_mult=0.1)}),  # a part of it trains
        (('backbone.0', 'backbone.1'), {'backbone': dict(decay_mult=0.0)}),  # asks for no learning rate
        (('backbone.0', 'backbone.1'), {'neck': dict(lr_mult=0.1)}),  # not in the model at all
    ],
)
def test_nothing_is_told_where_there_is_nothing_to_tell(warnings, frozen, custom_keys):
    build(Model(frozen), custom_keys=custom_keys)
    assert warnings == []


def test_the_more_specific_key_counts(warnings):
    """'backbone.1' takes the only part that trains, so that nothing is left for 'backbone'."""
    build(Model(('backbone.0',)), custom_keys={'backbone': dict(lr_mult=0.1), 'backbone.1': dict(lr_mult=0.5)})
    assert len(warnings) == 1
    assert "for 'backbone'," in warnings[0]


@pytest.mark.parametrize('paramwise', [{}, HEAD_TWICE])
def test_a_model_without_anything_to_train_is_refused(paramwise):
    with pytest.raises(ValueError, match=r'No parameter of Model requires a gradient'):
        build(Model(('backbone', 'head')), **paramwise)


def test_parameters_with_the_same_settings_share_a_group_and_learn_the_same(warnings):
    paramwise = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'head': dict(lr_mult=2.0)})
    models = []
    for name in ('TrainableParamsOptimWrapperConstructor', 'DefaultOptimWrapperConstructor'):
        torch.manual_seed(0)
        models.append(Model(frozen=()))
        wrapper = build(models[-1], name, **paramwise)
        groups = wrapper.optimizer.param_groups
        assert len(groups) == (3 if name == 'TrainableParamsOptimWrapperConstructor' else 6)
        for _ in range(3):
            wrapper.update_params(models[-1](torch.arange(12.0).view(4, 3)).square().sum())
    for ours, theirs in zip(*(model.parameters() for model in models)):
        assert torch.equal(ours, theirs)
