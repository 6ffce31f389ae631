import pytest
import torch
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.registry import MODELS

from qbheat_mm.models import QBHeatDecoder, QBHeatPretrainHead
from qbheat_mm.models.heads.qbheat_head import gather_tokens


def build_head(**kwargs) -> QBHeatPretrainHead:
    torch.manual_seed(0)
    decoder = dict(type='QBHeatDecoder', in_channels=6, embed_dims=16, depth=2, num_heads=2)
    loss = dict(type='PixelReconstructionLoss', criterion='L2')
    return MODELS.build(
        dict(type='QBHeatPretrainHead', decoder=decoder, img_size=32, loss=loss, patch_size=8, **kwargs)
    )


@pytest.mark.parametrize(('mixer', 'mixes'), [('attention', True), ('local', False)])
def test_only_attention_mixes_positions(mixer, mixes):
    torch.manual_seed(0)
    decoder = QBHeatDecoder(6, grid_size=4, patch_size=8, mixer=mixer, embed_dims=16, depth=1, num_heads=2)
    features = torch.randn(1, 6, 4, 4)
    changed = features.clone()
    changed[..., 3, 3] += 1
    difference = (decoder(features) - decoder(changed)).abs().amax(-1)[0]
    assert difference[15] > 0
    assert bool((difference[:15] > 0).any()) == mixes


def test_unknown_mixer_is_refused():
    with pytest.raises(ValueError, match="'attention' nor 'local'"):
        QBHeatDecoder(6, grid_size=4, mixer='conv')


def test_loss_sees_masked_pixels_only():
    head = build_head()
    features, images = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 32, 32)
    hidden = torch.arange(1, 16).expand(2, -1)
    loss = head.loss(features, images, hidden)['loss']
    visible_changed, masked_changed = images.clone(), images.clone()
    visible_changed[..., 3, 3] += 1  # in the first patch
    masked_changed[..., 3, 9] += 1  # in the second
    assert torch.equal(head.loss(features, visible_changed, hidden)['loss'], loss)
    assert not torch.equal(head.loss(features, masked_changed, hidden)['loss'], loss)


def test_sample_losses_average_to_the_loss_and_beat_every_other_constant():
    head = build_head()
    features, images = torch.randn(3, 6, 4, 4), torch.randn(3, 3, 32, 32)
    masked = torch.rand(1, 16).gt(0.4).expand(3, 16)
    pred = head(features)
    ours, constant = head.sample_losses(pred, images, masked)
    hidden = masked[0].nonzero().mT.expand(3, -1)
    torch.testing.assert_close(ours.mean(), head.loss(features, images, hidden)['loss'])
    for value in (-0.1, 0.1):
        other, _ = head.sample_losses(torch.full_like(pred, value), images, masked)
        assert (other > constant).all()


@pytest.mark.parametrize('norm_pix', [True, False])
def test_perfect_prediction_gives_the_image_back(norm_pix):
    head = build_head(norm_pix=norm_pix)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(head.to_pixels(head.construct_target(images), images), images, rtol=1e-4, atol=1e-4)


def maes_target(head: QBHeatPretrainHead, images: torch.Tensor) -> torch.Tensor:
    """As mmpretrain makes it, in our order of a patch's values."""
    maes = MAEPretrainHead(dict(type='PixelReconstructionLoss', criterion='L2'), head.norm_pix, head.patch_size)
    return maes.construct_target(images).unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)


@pytest.mark.parametrize('contrast', [1.0, 1e-3, 0.0])
def test_targets_are_maes(contrast):
    head = build_head().double()
    images = 2 + contrast * torch.randn(2, 3, 32, 32, dtype=torch.double)
    wanted = maes_target(head, images)
    torch.testing.assert_close(head.construct_target(images), wanted)
    torch.testing.assert_close(head.construct_target(images.float()).double(), wanted, rtol=1e-3, atol=1e-3)
    cells = torch.tensor([[3, 0], [5, 7]])
    torch.testing.assert_close(head.construct_target(images, cells), gather_tokens(wanted, cells))


def random_cells(count: int, of: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` cells of each of three maps, in no order."""
    return torch.rand(3, of, generator=generator).argsort(1)[:, :count]


@pytest.mark.parametrize(('mixer', 'depth'), [('attention', 1), ('attention', 2), ('local', 2)])
def test_decoding_some_positions_is_picking_from_all(mixer, depth, generator):
    torch.manual_seed(0)
    decoder = QBHeatDecoder(6, grid_size=4, patch_size=4, mixer=mixer, embed_dims=16, depth=depth, num_heads=2)
    decoder.double()
    cells = random_cells(11, 16, generator)
    features = torch.randn(3, 6, 4, 4, dtype=torch.double, requires_grad=True)
    gradient = torch.randn(3, 11, 48, dtype=torch.double)
    results = []
    for patches in (gather_tokens(decoder(features), cells), decoder(features, cells)):
        gradients = torch.autograd.grad(patches, [features, *decoder.parameters()], gradient)
        results.append([patches, *gradients])
    for whole, some in zip(*results):
        torch.testing.assert_close(some, whole)


@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('criterion', ['L1', 'L2'])
def test_loss_is_the_masked_mean_over_a_whole_decoding(norm_pix, criterion, generator):
    head = build_head(norm_pix=norm_pix)
    head.loss_module = MODELS.build(dict(type='PixelReconstructionLoss', criterion=criterion))
    features, images = torch.randn(3, 6, 4, 4, requires_grad=True), torch.randn(3, 3, 32, 32)
    hidden = random_cells(12, 16, generator)
    masked = torch.zeros(3, 16).scatter(1, hidden, 1)
    whole = head.loss_module(head(features), maes_target(head, images), masked)
    ours = head.loss(features, images, hidden)['loss']
    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=0)
    parts = [features, *head.parameters()]
    for our, gradient in zip(torch.autograd.grad(ours, parts), torch.autograd.grad(whole, parts)):
        torch.testing.assert_close(our, gradient, rtol=1e-4, atol=1e-7)


def test_patches_that_need_not_be_decoded_are_not(generator):
    head = build_head()
    sizes = []
    head.decoder.pixels.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    head.decoder.layers[-1].ffn.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    head.loss(torch.randn(3, 6, 4, 4), torch.randn(3, 3, 32, 32), random_cells(12, 16, generator))
    assert sizes == [(3, 12, 16), (3, 12, 192)]
