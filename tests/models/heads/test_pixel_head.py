import pytest
import torch
from mmpretrain.registry import MODELS

from qbheat_mm.models import PixelDecoder, PixelHead


def build_head(**kwargs) -> PixelHead:
    torch.manual_seed(0)
    decoder = dict(type='PixelDecoder', in_channels=6, embed_dims=16, depth=2, num_heads=2)
    loss = dict(type='PixelReconstructionLoss', criterion='L2')
    return MODELS.build(dict(type='PixelHead', decoder=decoder, img_size=32, loss=loss, patch_size=8, **kwargs))


@pytest.mark.parametrize(('mixer', 'mixes'), [('attention', True), ('local', False)])
def test_only_attention_mixes_positions(mixer, mixes):
    torch.manual_seed(0)
    decoder = PixelDecoder(6, grid_size=4, patch_size=8, mixer=mixer, embed_dims=16, depth=1, num_heads=2)
    features = torch.randn(1, 6, 4, 4)
    changed = features.clone()
    changed[..., 3, 3] += 1
    difference = (decoder(features) - decoder(changed)).abs().amax(-1)[0]
    assert difference[15] > 0
    assert bool((difference[:15] > 0).any()) == mixes


def test_unknown_mixer_is_refused():
    with pytest.raises(ValueError, match="'attention' nor 'local'"):
        PixelDecoder(6, grid_size=4, mixer='conv')


def test_loss_sees_masked_pixels_only():
    head = build_head()
    features, images = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 32, 32)
    masked = torch.ones(2, 16, dtype=torch.bool)
    masked[:, 0] = False
    loss = head.loss(features, images, masked)['loss']
    visible_changed, masked_changed = images.clone(), images.clone()
    visible_changed[..., 3, 3] += 1  # in the first patch
    masked_changed[..., 3, 9] += 1  # in the second
    assert torch.equal(head.loss(features, visible_changed, masked)['loss'], loss)
    assert not torch.equal(head.loss(features, masked_changed, masked)['loss'], loss)


def test_sample_losses_average_to_the_loss_and_beat_every_other_constant():
    head = build_head()
    features, images = torch.randn(3, 6, 4, 4), torch.randn(3, 3, 32, 32)
    masked = torch.rand(1, 16).gt(0.4).expand(3, 16)
    pred = head(features)
    ours, constant = head.sample_losses(pred, images, masked)
    torch.testing.assert_close(ours.mean(), head.loss(features, images, masked)['loss'])
    for value in (-0.1, 0.1):
        other, _ = head.sample_losses(torch.full_like(pred, value), images, masked)
        assert (other > constant).all()


@pytest.mark.parametrize('norm_pix', [True, False])
def test_perfect_prediction_gives_the_picture_back(norm_pix):
    head = build_head(norm_pix=norm_pix)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(head.to_pixels(head.construct_target(images), images), images, rtol=1e-4, atol=1e-4)
