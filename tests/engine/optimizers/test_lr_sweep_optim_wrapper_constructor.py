import pytest
from helpers.models import TINY_ARCH
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS

LINEAR = dict(type='LinearClsHead', num_classes=3, in_channels=20)
RATES = dict(type='LRSweepHead', head=LINEAR, lrs=(0.1, 1.0))
WRAPPER = dict(optimizer=dict(type='SGD', lr=1.0), constructor='LRSweepOptimWrapperConstructor')


def build(head=RATES, frozen_stages=4):
    backbone = dict(type='MobileFormer', arch=TINY_ARCH, frozen_stages=frozen_stages)
    return MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    )


def test_a_group_per_head_at_its_rate_and_nothing_else():
    model = build()
    wrapper = build_optim_wrapper(model, WRAPPER)
    assert [group['lr'] for group in wrapper.optimizer.param_groups] == [0.1, 1.0]
    for group, head in zip(wrapper.optimizer.param_groups, model.head.heads):
        assert [id(each) for each in group['params']] == [id(each) for each in head.parameters()]


@pytest.mark.parametrize(
    ('model', 'wrapper', 'message'),
    [
        (dict(frozen_stages=3), {}, r'last_local|stages\.3|other parameters learn'),
        (dict(head=LINEAR), {}, 'needs a LRSweepHead'),
        ({}, dict(clip_grad=dict(max_norm=1)), 'neither optim_wrapper.clip_grad'),
        ({}, dict(paramwise_cfg=dict(bias_lr_mult=2)), 'nor paramwise_cfg'),
    ],
)
def test_what_would_couple_the_heads_is_refused(model, wrapper, message):
    with pytest.raises(ValueError, match=message):
        build_optim_wrapper(build(**model), WRAPPER | wrapper)
