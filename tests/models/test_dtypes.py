"""Models whose weights are of another precision than float32, as `model.half()` makes them."""

import pytest
import torch
from helpers.models import TINY_ARCH, build_qbheat, frozen_classifier_config, samples_at
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

DTYPES = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@DTYPES
@pytest.mark.parametrize('neck', [dict(), dict(scheme='exp'), dict(commute='penalty'), dict(commute='shared_basis')])
@pytest.mark.parametrize('mixer', ['attention', 'local'])
def test_qbheat(dtype, neck, mixer):
    samples = samples_at([(0, 0), (1, 2)])
    model = build_qbheat(neck=neck, decoder=dict(mixer=mixer))
    expected = sum(model.loss(IMAGE, samples).values())
    loss = sum(model.to(dtype).loss(IMAGE.to(dtype), samples).values())
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=0.02)


@DTYPES
@pytest.mark.parametrize('head', ['LinearClsHead', 'TransformerProbeHead', 'MobileFormerClsHead'])
def test_classifiers(dtype, head):
    config = frozen_classifier_config()
    config['head'] = dict(
        LinearClsHead=config['head'],
        TransformerProbeHead=dict(type=head, num_classes=2, in_channels=20, embed_dims=16, num_heads=2),
        MobileFormerClsHead=dict(type=head, num_classes=2, in_channels=20, token_dims=16, hidden_channels=8),
    )[head]
    if head != 'LinearClsHead':
        config['neck'] = None
    config['backbone'] = dict(type='MobileFormer', arch=TINY_ARCH, out_tokens=head == 'MobileFormerClsHead')
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    expected = model.loss(IMAGE, samples)['loss']
    loss = model.to(dtype).loss(IMAGE.to(dtype), samples)['loss']
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=0.05)
