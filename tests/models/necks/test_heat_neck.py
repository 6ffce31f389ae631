import copy
import itertools

import pytest
import torch

from qbheat_mm.heat import propagator
from qbheat_mm.models import HeatNeck

CORNERS = list(itertools.product((0, 3), (0, 3)))


@pytest.fixture
def neck(generator) -> HeatNeck:
    neck = HeatNeck(5)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return neck


def predict_cell_by_cell(neck, visible, top, left):
    """The definition: every cell from the one a block away, (I + dy B)(I + dx A) z, x first."""
    channels, height, width = visible.shape
    a, b = (each[0].detach() for each in neck.generators())
    identity = torch.eye(channels)
    whole = torch.empty(channels, 2 * height, 2 * width)
    for row, column in itertools.product(range(2 * height), range(2 * width)):
        dy = -1 if row < top else int(row >= top + height)
        dx = -1 if column < left else int(column >= left + width)
        source = visible[:, row - dy * height - top, column - dx * width - left]
        whole[:, row, column] = (identity + dy * b) @ (identity + dx * a) @ source
    return whole


@pytest.mark.parametrize('origin', CORNERS)
def test_prediction_is_the_first_order_scheme_position_by_position(neck, generator, origin):
    visible = torch.randn(2, 5, 3, 3, generator=generator)
    whole = neck(visible, torch.tensor([origin, origin]))
    expected = torch.stack([predict_cell_by_cell(neck, each, *origin) for each in visible])
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


def test_each_sample_has_its_own_corner(neck, generator):
    visible = torch.randn(4, 5, 3, 3, generator=generator)
    whole = neck(visible, torch.tensor(CORNERS))
    expected = torch.stack([predict_cell_by_cell(neck, each, *origin) for each, origin in zip(visible, CORNERS)])
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('origin', CORNERS)
def test_without_generators_every_quarter_is_the_visible_one(origin):
    visible = torch.arange(9.0).view(1, 1, 3, 3).expand(1, 5, 3, 3)  # a distinct value per position
    whole = HeatNeck(5)(visible, torch.tensor([origin]))
    assert torch.equal(whole, visible.tile(1, 1, 2, 2))


def test_prediction_stays_in_float32_under_autocast(neck, generator):
    visible = torch.randn(1, 5, 3, 3, generator=generator)
    origin = torch.tensor([[0, 3]])
    with torch.autocast('cpu', torch.bfloat16):
        whole = neck(visible, origin)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, neck(visible, origin))


def test_generators_learn_from_the_predicted_quarters_only(neck, generator):
    visible = torch.randn(1, 5, 3, 3, generator=generator)
    neck(visible, torch.tensor([[0, 0]]))[..., :3, :3].sum().backward()
    assert all(not parameter.grad.any() for parameter in neck.parameters())
    neck(visible, torch.tensor([[0, 0]])).square().sum().backward()
    assert all(parameter.grad.any() for parameter in neck.parameters())


# --- every option ----------------------------------------------------------------------------------------------------

OPTIONS = [
    dict(scheme=scheme, direction=direction, commute=commute)
    for scheme in ('euler', 3, 'exp')
    for direction in ('signed', 'separate')
    for commute in ('none', 'penalty', 'shared_basis')
]


def random_neck(channels: int = 6, **options) -> HeatNeck:
    neck = HeatNeck(channels, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return neck


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('origin', [(0, 0), (4, 0), (2, 2), (1, 3), (4, 4)])
def test_every_masked_cell_comes_from_the_visible_cell_one_block_away(options, origin, generator):
    neck = random_neck(**options)
    visible = torch.randn(1, 6, 4, 4, generator=generator)
    whole = neck(visible, torch.tensor([origin]))
    a, b = neck.generators()
    back = -1 if options['direction'] == 'signed' else 1
    identity = torch.eye(6)
    forward_back_x = {0: identity, 1: propagator(a[0], 1, neck.scheme), -1: propagator(a[-1], back, neck.scheme)}
    forward_back_y = {0: identity, 1: propagator(b[0], 1, neck.scheme), -1: propagator(b[-1], back, neck.scheme)}
    for row, column in itertools.product(range(8), range(8)):
        dy, dx = ((-1 if cell < start else int(cell >= start + 4)) for cell, start in zip((row, column), origin))
        source = visible[0, :, row - 4 * dy - origin[0], column - 4 * dx - origin[1]]
        expected = forward_back_y[dy] @ forward_back_x[dx] @ source
        torch.testing.assert_close(whole[0, :, row, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scheme', ['euler', 3])
@pytest.mark.parametrize('direction', ['signed', 'separate'])
@pytest.mark.parametrize('origin', [(0, 0), (4, 0), (1, 3)])
def test_the_normalized_law_moves_by_the_generator_of_normalized_features(scheme, direction, origin, generator):
    neck = random_neck(law='norm_linear', scheme=scheme, direction=direction)
    visible = torch.randn(1, 6, 4, 4, generator=generator)
    whole = neck(visible, torch.tensor([origin]))
    a, b = (each.detach() for each in neck.generators())
    steps = 1 if scheme == 'euler' else scheme

    def move(z, matrices, displacement):
        sign = displacement if direction == 'signed' else abs(displacement)
        for _ in range(steps if displacement else 0):
            normalized = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            z = z + sign / steps * (matrices[-1 if displacement < 0 else 0] @ normalized)
        return z

    for row, column in itertools.product(range(8), range(8)):
        dy, dx = ((-1 if cell < start else int(cell >= start + 4)) for cell, start in zip((row, column), origin))
        source = visible[0, :, row - 4 * dy - origin[0], column - 4 * dx - origin[1]]
        expected = move(move(source, a, dx), b, dy)
        torch.testing.assert_close(whole[0, :, row, column], expected, rtol=1e-4, atol=1e-5)


def exchange_directions(neck: HeatNeck, axis: str) -> HeatNeck:
    """The neck of the mirrored world: A -> -A, or right and left exchanged."""
    mirrored = copy.deepcopy(neck)
    generators = getattr(mirrored, f'generator_{axis}')
    with torch.no_grad():
        generators.copy_(-generators if neck.direction == 'signed' else generators.flip(0))
    return mirrored


@pytest.mark.parametrize(
    ('law', 'scheme'), [*(('linear', scheme) for scheme in ('euler', 4, 'exp')), ('norm_linear', 'euler')]
)
@pytest.mark.parametrize('direction', ['signed', 'separate'])
@pytest.mark.parametrize(('axis', 'dimension', 'mirrored_origin'), [('x', 3, (0, 2)), ('y', 2, (4, 2))])
def test_a_mirrored_image_is_a_mirrored_neck(law, scheme, direction, axis, dimension, mirrored_origin, generator):
    neck = random_neck(law=law, scheme=scheme, direction=direction)
    visible = torch.randn(2, 6, 4, 4, generator=generator)
    origin = torch.tensor([(0, 2)] * 2)
    expected = neck(visible, origin).flip(dimension)
    ours = exchange_directions(neck, axis)(visible.flip(dimension), torch.tensor([mirrored_origin] * 2))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('direction', ['signed', 'separate'])
def test_shared_basis_commutes_through_training_and_saving(direction, generator):
    neck = random_neck(commute='shared_basis', direction=direction)
    optimizer = torch.optim.AdamW(neck.parameters(), 1e-2)
    for _ in range(20):
        visible = torch.randn(2, 6, 4, 4, generator=generator)
        loss = (neck(visible, torch.tensor([(0, 0), (4, 4)])) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loaded = HeatNeck(6, commute='shared_basis', direction=direction)
    loaded.load_state_dict(neck.state_dict())
    a, b = loaded.generators()
    products = a[:, None] @ b[None]
    assert (products - b[None] @ a[:, None]).norm() < 1e-5 * products.norm()
    assert a.abs().max() > 0.1


def test_penalty_is_its_own_loss_and_teaches_commuting():
    neck = random_neck(commute='penalty')
    first = neck.losses()['loss_commute']
    a, b = (each[0] for each in neck.generators())
    torch.testing.assert_close(first, (a @ b - b @ a).square().sum())
    optimizer = torch.optim.SGD(neck.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        neck.losses()['loss_commute'].backward()
        optimizer.step()
    assert neck.losses()['loss_commute'] < 0.1 * first
    assert random_neck().losses() == {}


def test_none_learns_nothing_and_copies():
    neck = HeatNeck(6, scheme='none')
    assert list(neck.parameters()) == []
    visible = torch.randn(1, 6, 4, 4)
    assert torch.equal(neck(visible, torch.tensor([(0, 4)])), visible.tile(1, 1, 2, 2))
    assert torch.equal(neck(visible, torch.tensor([(1, 2)]))[..., 1:5, 2:6], visible)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(direction='left'), "direction='left'"),
        (dict(commute='yes'), "commute='yes'"),
        (dict(scheme='rk4'), "scheme='rk4'"),
        (dict(scheme=0), 'scheme=0'),
        (dict(scheme='none', commute='penalty'), 'learns nothing'),
        (dict(scheme='none', direction='separate'), 'learns nothing'),
        (dict(law='heat'), "law='heat'"),
        (dict(law='norm_linear', scheme='exp'), "law='norm_linear' takes Euler steps"),
        (dict(law='norm_linear', scheme='none'), "law='norm_linear' takes Euler steps"),
        (dict(law='norm_linear', commute='shared_basis'), "law='norm_linear' takes .* commute='none'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeatNeck(6, **options)


@pytest.mark.parametrize('options', [dict(), dict(scheme='exp', direction='separate'), dict(scheme='none')], ids=str)
def test_gradients_are_those_of_finite_differences(options, generator):
    neck = random_neck(3, **options)
    visible = torch.randn(3, 3, 2, 2, generator=generator, requires_grad=True)
    origin = torch.tensor([(0, 2), (1, 1), (2, 0)])
    weight = torch.randn(3, 3, 4, 4, generator=generator)
    gradient = torch.autograd.grad((neck(visible, origin) * weight).sum(), visible)[0]
    for cell in itertools.product(range(3), range(3), range(2), range(2)):
        moved = visible.detach().clone()
        moved[cell] += 1  # the map is linear, so any step will do
        difference = ((neck(moved, origin) - neck(visible, origin)) * weight).sum()
        torch.testing.assert_close(difference, gradient[cell], rtol=1e-4, atol=1e-4)
