import itertools

import pytest
import torch

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
    a, b = (each.detach() for each in neck.generators())
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
