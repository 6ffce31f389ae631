"""Whitening: mean 0, covariance I, invertible, and an error without statistics."""

import pytest
import torch
from mmpretrain.registry import MODELS

from qbheat_mm.models import Whitening


def skewed(*shape: int, channels: int = 6) -> torch.Tensor:
    """Features (N, C, ...) whose variances span four orders of magnitude, in mixed directions, with a mean."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator).double())[0]
    scales = torch.logspace(0, -2, channels).double()
    x = torch.randn(*shape, channels, generator=generator).double() * scales @ rotation + 3
    return x.movedim(-1, 1)


def moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = features.movedim(1, -1).flatten(0, -2)
    return rows.mean(0), rows.mT.cov(correction=0)


def fitted(features: torch.Tensor, **kwargs) -> Whitening:
    layer = MODELS.build(dict(type='Whitening', in_channels=[features.shape[1]], **kwargs)).double()
    layer.layers[0].set_statistics(*moments(features))
    return layer


@pytest.mark.parametrize('shape', [(500,), (40, 5, 7)])
def test_mean_0_and_covariance_1(shape):
    features = skewed(*shape)
    (white,) = fitted(features, eps=0)((features,))
    mean, covariance = moments(white)
    assert white.shape == features.shape
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
    torch.testing.assert_close(covariance, torch.eye(6).double(), atol=1e-8, rtol=0)


def test_the_map_is_symmetric_and_invertible():
    features = skewed(500)
    layer = fitted(features).layers[0]
    torch.testing.assert_close(layer.matrix, layer.matrix.mT)
    back = layer(features) @ torch.linalg.inv(layer.matrix) + layer.mean
    torch.testing.assert_close(back, features)


def test_eps_damps_directions_in_which_nothing_varies():
    features = skewed(500)
    features[:, 0] = features[:, 1]  # one direction of six has no variance at all
    variances = torch.linalg.eigvalsh(moments(fitted(features, eps=1e-5)((features,))[0])[1])
    assert variances[0] < 1e-9
    assert variances[1] > 0.8
    assert variances[-1] <= 1
    noise = fitted(features, eps=1e-5)((features + 1e-6 * torch.randn(features.shape),))[0]
    torch.testing.assert_close(noise, fitted(features, eps=1e-5)((features,))[0], atol=5e-3, rtol=0)


def test_identity_changes_nothing():
    layer = Whitening([6]).double()
    layer.layers[0].set_identity()
    features = skewed(40, 5, 7)
    torch.testing.assert_close(layer((features,))[0], features, atol=0, rtol=0)


def test_full_precision_under_autocast():
    features = skewed(500)
    layer = fitted(features).float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (white,) = layer((features.float(),))
    assert torch.equal(white, layer((features.float(),))[0])


def test_each_level_has_its_own_statistics_and_earlier_ones_are_left_out():
    high, low = skewed(40, 10, 14, channels=4), skewed(40, 5, 7)
    layer = MODELS.build(dict(type='Whitening', in_channels=[4, 6])).double()
    for each, features in zip(layer.layers, (high, low), strict=True):
        each.set_statistics(*moments(features))
    outs = layer((torch.zeros(40, 2, 20, 28), high, low))
    for out, features in zip(outs, (high, low), strict=True):
        torch.testing.assert_close(out, fitted(features)((features,))[0])


def test_without_statistics_it_says_so_and_a_checkpoint_brings_them():
    features = skewed(500)
    fresh = Whitening([6]).double()
    with pytest.raises(RuntimeError, match=r'_hooks.*WhiteningHook'):
        fresh((features,))
    source = fitted(features)
    fresh.load_state_dict(source.state_dict())
    torch.testing.assert_close(fresh((features,)), source((features,)))
    assert not list(fresh.parameters())


def test_no_step_waits_for_the_device():
    """The host reads nothing, so nothing breaks a compiled graph either."""
    features = skewed(40, 5, 7)
    layer = fitted(features)
    compiled = torch.compile(layer, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled((features,)), layer((features,)))
