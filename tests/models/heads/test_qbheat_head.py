import pytest
import torch
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.registry import MODELS

from qbheat_mm.models import QBHeatPretrainHead
from qbheat_mm.models.utils import gather_tokens, patchify


def build(criterion: str = 'L2', **kwargs) -> QBHeatPretrainHead:
    loss = dict(type='PixelReconstructionLoss', criterion=criterion)
    return MODELS.build(dict(type='QBHeatPretrainHead', loss=loss, **kwargs))


def test_sample_losses_average_to_the_loss_and_beat_every_other_constant(generator):
    head = build()
    pred, patches = (torch.randn(3, 12, 192, generator=generator) for _ in range(2))
    ours, constant = head.sample_losses(pred, patches)
    torch.testing.assert_close(ours.mean(), head.loss(pred, patches)['loss'])
    for value in (-0.1, 0.1):
        other, _ = head.sample_losses(torch.full_like(pred, value), patches)
        assert (other > constant).all()


@pytest.mark.parametrize('norm_pix', [True, False])
def test_perfect_prediction_gives_the_pixels_back(norm_pix, generator):
    head, patches = build(norm_pix=norm_pix), torch.randn(2, 16, 192, generator=generator)
    torch.testing.assert_close(head.to_pixels(head.construct_target(patches), patches), patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('criterion', ['L1', 'L2'])
def test_loss_is_maes_masked_mean_over_all_patches(norm_pix, criterion, generator):
    head = build(criterion, norm_pix=norm_pix)
    maes = MAEPretrainHead(dict(type='PixelReconstructionLoss', criterion=criterion), norm_pix, patch_size=8)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    pred = torch.randn(3, 16, 192, generator=generator, requires_grad=True)
    ids = torch.rand(3, 16, generator=generator).argsort(1)[:, :12]
    mask = torch.zeros(3, 16).scatter(1, ids, 1)
    pixel_by_pixel = pred.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
    whole = maes.loss(pixel_by_pixel, images, mask)
    ours = head.loss(gather_tokens(pred, ids), gather_tokens(patchify(images, 8), ids))['loss']
    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=0)
    (ours_gradient,), (whole_gradient,) = (torch.autograd.grad(each, pred) for each in (ours, whole))
    torch.testing.assert_close(ours_gradient, whole_gradient, rtol=1e-4, atol=1e-7)


def test_a_loss_without_a_type_is_refused():
    with pytest.raises(ValueError, match='names no type'):
        QBHeatPretrainHead(loss=dict(criterion='L2'))
