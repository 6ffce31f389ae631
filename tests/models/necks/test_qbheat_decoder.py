import pytest
import torch

from qbheat_mm.models import QBHeatDecoder
from qbheat_mm.models.utils import gather_tokens


def build(depth: int = 1, **kwargs) -> QBHeatDecoder:
    torch.manual_seed(0)
    return QBHeatDecoder(6, 48, embed_dims=16, depth=depth, num_heads=2, **kwargs)


def random_ids(count: int, of: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` positions of each of three maps, in no order."""
    return torch.rand(3, of, generator=generator).argsort(1)[:, :count]


@pytest.mark.parametrize(('mixer', 'mixes'), [('attention', True), ('local', False)])
def test_only_attention_mixes_positions(mixer, mixes, generator):
    decoder = build(mixer=mixer)
    features = torch.randn(1, 6, 4, 4, generator=generator)
    changed = features.clone()
    changed[..., 3, 3] += 1
    difference = (decoder(features) - decoder(changed)).abs().amax(-1)[0]
    assert difference[15] > 0
    assert bool((difference[:15] > 0).any()) == mixes


@pytest.mark.parametrize('mixer', ['attention', 'local'])
def test_positions_follow_from_the_map_of_any_shape(mixer):
    decoder = build(mixer=mixer)
    for height, width in ((4, 4), (2, 6)):
        patches = decoder(torch.ones(1, 6, height, width))
        assert patches.shape == (1, height * width, 48)
        assert len(patches[0].unique(dim=0)) == height * width  # equal features at unequal positions


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(mixer='conv'), "mixer='conv': Input should be 'attention' or 'local'"),
        (dict(embed_dims=18), 'multiple of 4'),
        (dict(embed_dims=16, num_heads=3), 'does not divide into num_heads=3'),
    ],
)
def test_what_cannot_work_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QBHeatDecoder(6, 48, **kwargs)


@pytest.mark.parametrize(('mixer', 'depth'), [('attention', 1), ('attention', 2), ('local', 2)])
def test_decoding_some_positions_is_gathering_from_all(mixer, depth, generator):
    decoder = build(depth, mixer=mixer).double()
    ids = random_ids(11, 16, generator)
    features = torch.randn(3, 6, 4, 4, dtype=torch.double, requires_grad=True)
    gradient = torch.randn(3, 11, 48, dtype=torch.double)
    results = []
    for patches in (gather_tokens(decoder(features), ids), decoder(features, ids)):
        gradients = torch.autograd.grad(patches, [features, *decoder.parameters()], gradient)
        results.append([patches, *gradients])
    for whole, some in zip(*results):
        torch.testing.assert_close(some, whole)


def test_positions_that_need_not_be_decoded_are_not(generator):
    decoder, sizes = build(2), []
    for module in (decoder.pred, decoder.layers[-1].ffn):
        module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    decoder(torch.randn(3, 6, 4, 4), random_ids(12, 16, generator))
    assert sizes == [(3, 12, 16), (3, 12, 48)]
