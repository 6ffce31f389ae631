import pytest
import torch
from helpers.models import TINY_ARCH
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import METRICS, MODELS
from mmpretrain.structures import DataSample

HEADS = dict(
    linear=dict(type='LinearClsHead', num_classes=3, in_channels=20),
    tran=dict(type='TransformerProbeHead', num_classes=3, in_channels=20, embed_dims=16, num_heads=2),
)
OPTIMIZERS = dict(
    sgd=dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=1e-2),
    adamw=dict(type='AdamW', lr=1.0, weight_decay=0.05),
)


def build(head, **backbone):
    torch.manual_seed(0)
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='MobileFormer', arch=TINY_ARCH, frozen_stages=4, **backbone),
        neck=dict(type='GlobalAveragePooling') if 'Linear' in str(head) else None,
        head=head,
    )
    model = MODELS.build(cfg)
    model.init_weights()
    return model.train()


def train(model, wrapper, steps: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(6, 3, 64, 64, generator=generator)
        samples = [DataSample().set_gt_label(int(i)) for i in torch.randint(3, (6,), generator=generator)]
        losses = model.loss(images, samples)
        wrapper.update_params(model.parse_losses(losses)[0])
    return losses


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('kind', HEADS)
def test_each_head_learns_what_it_would_learn_alone(kind, optimizer):
    rates = (0.003, 0.3, 0.03)
    optimizer = OPTIMIZERS[optimizer]
    model = build(dict(type='LRSweepHead', head=HEADS[kind], lrs=rates))
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, constructor='LRSweepOptimWrapperConstructor'))
    losses = train(model, wrapper)
    for lr, head in zip(rates, model.head.heads):
        alone = build(HEADS[kind])
        params = [each for each in alone.parameters() if each.requires_grad]
        single = build_optim_wrapper(torch.nn.ParameterList(params), dict(optimizer=optimizer | dict(lr=lr)))
        loss = train(alone, single)['loss']
        torch.testing.assert_close(losses[f'loss_lr{lr:g}'], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(head.state_dict(), alone.head.state_dict(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.head.heads[0].fc.weight, model.head.heads[1].fc.weight, atol=1e-3)


def test_accuracy_is_reported_per_rate():
    model = build(dict(type='LRSweepHead', head=HEADS['linear'], lrs=(0.1, 1.0))).eval()
    with torch.no_grad():
        for head, favorite in zip(model.head.heads, (0, 2)):
            head.fc.weight.zero_()
            head.fc.bias.copy_(torch.eye(3)[favorite])
    samples = [DataSample().set_gt_label(label) for label in (0, 2, 2, 1)]
    with torch.no_grad():
        samples = model.predict(torch.randn(4, 3, 64, 64), samples)
    metric = METRICS.build(dict(type='LRSweepAccuracy'))
    metric.process({}, [sample.to_dict() for sample in samples])
    assert metric.evaluate(4) == {
        'accuracy/top1_lr0.1': 25.0,
        'accuracy/top1_lr1': 50.0,
        'accuracy/top1': 50.0,
        'accuracy/best_lr': 1.0,
    }


@pytest.mark.parametrize('lrs', [(), (0.1, 0.1), (0.1, 0.0)])
def test_rates_must_be_different_positive_numbers(lrs):
    with pytest.raises(ValueError, match=r'^LRSweepHead: lrs'):
        MODELS.build(dict(type='LRSweepHead', head=HEADS['linear'], lrs=lrs))
