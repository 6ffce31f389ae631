import json
import math

import pytest
import torch
from helpers.fields import commuting_pair, fields, often, randn, rng, schemes, seeds, sizes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qbheat_mm.evaluation.functional.heat_law import (
    derivative_relation,
    describe_generators,
    effective_rank,
    fit_generators,
    learned_generators,
    measure,
    shuffle_positions,
)
from qbheat_mm.heat import CommutingGenerators, propagator


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@often
@given(seeds, sizes, schemes, st.sampled_from([1, 2]))
def test_fit_recovers_the_generators(seed, size, scheme, d):
    A, B = commuting_pair(size, seed)
    fit = fit_generators(fields(A, B, scheme, d, seed=seed), d)
    assert relative(propagator(fit.A, d), propagator(A, d, scheme)) < 1e-6
    assert relative(propagator(fit.B, d), propagator(B, d, scheme)) < 1e-6
    if scheme in ('euler', 1):
        assert max(relative(fit.A, A), relative(fit.B, B)) < 1e-6
    assert (fit.r2_x, fit.r2_y) == pytest.approx((1, 1), abs=1e-9)
    assert max(fit.copy_r2_x, fit.copy_r2_y) < 1
    # The prediction is the propagator's, on other fields and in the named direction.
    z = fields(A, B, scheme, d, seed=seed + 1)
    moved = torch.einsum('ij,njhw->nihw', propagator(fit.A, d), z[..., :-d])
    assert relative(moved, z[..., d:]) < 1e-6


def test_axes_are_not_confused():
    A, B = commuting_pair(3, 0)
    features = fields(A, B)[:, :, :3]  # not square
    fit, swapped = fit_generators(features), fit_generators(features.mT)
    torch.testing.assert_close(fit.A, swapped.B)
    torch.testing.assert_close(fit.B, swapped.A)
    assert (fit.r2_x, fit.copy_r2_x) == pytest.approx((swapped.r2_y, swapped.copy_r2_y))
    assert not torch.allclose(fit.A, fit.B)


def test_batches_are_visited_once_and_count_together():
    features = randn(10, 4, 6, 5, seed=0).float() + 3
    whole = fit_generators(features)
    split = fit_generators(batch for batch in features.split([1, 2, 7]))
    torch.testing.assert_close(tuple(whole), tuple(split))
    assert whole.A.dtype == torch.float64
    assert effective_rank(features) == pytest.approx(effective_rank(iter(features.split(3))))
    torch.testing.assert_close(derivative_relation(features), derivative_relation(iter(features.split(3))))


def direct_r2(prediction, target):
    residual = (target - prediction).square().sum()
    return float(1 - residual / (target - target.mean((0, 2, 3), keepdim=True)).square().sum())


@often
@given(seeds)
def test_fit_and_r2_are_those_of_a_direct_computation(seed):
    mean = 2 * randn(3, 1, 1, seed=seed)
    features, held_out = randn(20, 3, 6, 5, seed=seed) + mean, randn(9, 3, 5, 7, seed=seed + 1) + mean
    fit = fit_generators(features, 2, held_out)
    u, v = (z.transpose(0, 1).flatten(1).mT for z in (features[..., :-2], features[..., 2:]))
    step = torch.linalg.lstsq(u, v).solution.mT
    torch.testing.assert_close(torch.eye(3, dtype=torch.float64) + 2 * fit.A, step)
    u, v = held_out[..., :-2], held_out[..., 2:]
    assert fit.r2_x == pytest.approx(direct_r2(torch.einsum('ij,njhw->nihw', step, u), v))
    assert fit.copy_r2_x == pytest.approx(direct_r2(u, v))
    assert fit.copy_r2_y == pytest.approx(direct_r2(held_out[:, :, :-2], held_out[:, :, 2:]))


def test_white_noise_has_no_law_on_held_out_images():
    features, held_out = torch.randn(2, 6, 64, 14, 14, generator=rng(0))
    own, other = measure([features], [features]), measure([features], [held_out])
    assert own['one_cell']['x'] > 0.03  # the R^2 of the fit itself
    assert own['derivative'] > 0.03
    assert all(-0.2 < r2 < 0.02 for r2 in (other['one_cell']['x'], other['one_cell']['y'], other['derivative']))
    # With enough images R^2 is 0; copying noise doubles the error of the mean.
    features, held_out = torch.randn(2, 500, 8, 14, 14, generator=rng(1))
    fit = fit_generators(iter(features.split(50)), 7, held_out=iter(held_out.split(50)))
    noise = measure(features.split(50), held_out.split(50))
    assert noise['quarter'] == dict(x=fit.r2_x, y=fit.r2_y, copy_x=fit.copy_r2_x, copy_y=fit.copy_r2_y)
    r2 = [noise['derivative'], *(noise[field][axis] for field in ('one_cell', 'quarter') for axis in 'xy')]
    assert all(abs(value) < 0.01 for value in r2)
    assert noise['quarter']['copy_x'] == pytest.approx(-1, abs=0.02)
    assert noise['effective_rank'] == pytest.approx(8, abs=0.05)


@often
@given(seeds, sizes)
def test_derivative_relation_is_that_of_the_generators(seed, size):
    A, B = commuting_pair(size, seed)
    relation, r2 = derivative_relation(fields(A, B, count=2 * size, seed=seed))
    # Central differences of exponential fields are exactly sinh(A) z and sinh(B) z.
    sinh_A, sinh_B = ((propagator(g, 1, 'exp') - propagator(g, -1, 'exp')) / 2 for g in (A, B))
    assert relative(relation, sinh_A @ torch.linalg.inv(sinh_B)) < 1e-6
    assert r2 == pytest.approx(1, abs=1e-9)


def test_derivative_relation_at_small_steps_is_a_over_b():
    A, B = commuting_pair(4, 0)
    relation, _ = derivative_relation(fields(A / 100, B / 100, count=20))
    assert relative(relation, A @ torch.linalg.inv(B)) < 1e-4


def test_effective_rank():
    white = torch.randn(200, 8, 10, 10, generator=rng(0))
    assert effective_rank(white) == pytest.approx(8, rel=0.01)
    assert effective_rank(white + 100) == pytest.approx(8, rel=0.01)  # of the covariance: means do not count
    assert effective_rank(white[:, :1].expand(-1, 8, -1, -1)) == pytest.approx(1)
    scale = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0.0])[:, None, None]
    assert effective_rank(white * scale) == pytest.approx(3, rel=0.01)
    assert math.isnan(effective_rank(torch.ones(1, 2, 3, 3)))


def test_dead_channels_are_copied():
    A, B = commuting_pair(3, 0)
    alive = fields(A, B)
    fit = fit_generators(torch.cat([alive, torch.zeros_like(alive[:, :2])], dim=1))
    torch.testing.assert_close(fit.A[:3, :3], fit_generators(alive).A)
    assert not fit.A[3:].any()
    assert not fit.A[:, 3:].any()
    assert fit.r2_x == pytest.approx(1)


GOOD = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ('function', 'arguments', 'message'),
    [
        (fit_generators, dict(features=GOOD, displacement=0), 'displacement=0'),
        (fit_generators, dict(features=GOOD, displacement=-1), 'displacement=-1'),
        (fit_generators, dict(features=GOOD, displacement=1.5), r'displacement=1\.5'),
        (
            fit_generators,
            dict(features=GOOD, displacement=4),
            r'features: 5 cells a side are needed, the maps have \(4, 4\)',
        ),
        (fit_generators, dict(features=GOOD[0]), r'maps \(N, C, H, W\).*\(3, 4, 4\)'),
        (fit_generators, dict(features=[GOOD, 'maps']), 'not a value of type str'),
        (fit_generators, dict(features=[GOOD, GOOD[:, :2]]), 'one batch has 3 channels, another 2'),
        (fit_generators, dict(features=[]), 'features holds no batch'),
        (fit_generators, dict(features=GOOD[:0]), 'features holds no positions'),
        (fit_generators, dict(features=GOOD * math.nan), 'features holds numbers that are not finite'),
        (fit_generators, dict(features=GOOD + 1, held_out=iter([])), 'held_out holds no batch'),
        (fit_generators, dict(features=GOOD + 1, held_out=GOOD / 0), 'held_out holds numbers that are not finite'),
        (derivative_relation, dict(features=GOOD[..., :2]), '3 cells a side are needed'),
        (derivative_relation, dict(features=GOOD, held_out=[]), 'held_out'),
        (effective_rank, dict(features=GOOD * math.inf), 'not finite'),
        (effective_rank, dict(features=GOOD[0]), 'maps'),
    ],
)
def test_invalid_features_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**arguments)


def test_shuffling_keeps_cells_and_loses_places():
    features = [torch.randn(n, 6, 8, 8, generator=rng(n)) for n in (3, 2)]
    shuffled = shuffle_positions(features)
    for before, after in zip(features, shuffled, strict=True):
        assert after.shape == before.shape
        assert not torch.equal(after, before)
        for a, b in zip(before.flatten(2), after.flatten(2), strict=True):  # one image, (C, HW)
            order = a[0].argsort()[b[0].argsort().argsort()]
            assert torch.equal(a[:, order], b)  # whole cells moved
    (batch,) = shuffle_positions([torch.arange(16.0).view(1, 1, 4, 4).expand(2, -1, -1, -1)])
    assert not torch.equal(*batch)  # each image in its own order
    assert torch.equal(shuffle_positions(features)[1], shuffled[1])


def test_measure_tells_a_law_from_none():
    A, B = 0.1 * torch.diag(torch.arange(6.0)).double(), -0.2 * torch.eye(6).double()
    law = fields(A, B, cells=8, count=40)
    lawful = measure([law[:20]], [law[20:]])
    for field in ('one_cell', 'quarter'):
        assert lawful[field]['x'] == pytest.approx(1, abs=1e-6)
        assert lawful[field]['y'] == pytest.approx(1, abs=1e-6)
        assert lawful[field]['copy_x'] < 0.9
    assert lawful['derivative'] == pytest.approx(1, abs=1e-6)
    shuffled = measure(*(shuffle_positions([half]) for half in (law[:20], law[20:])))
    assert shuffled['one_cell']['y'] < 0.9
    assert shuffled['derivative'] < 0.2
    assert shuffled['effective_rank'] == pytest.approx(lawful['effective_rank'], rel=1e-6)


def test_measure_evaluates_on_the_held_out_maps():
    features, held_out = torch.randn(2, 3, 64, 8, 8, generator=rng(0))  # so few that they fit themselves well
    held_out[:, 32:] = 0
    own, other = measure([features], [features]), measure([features], [held_out])
    for field in ('one_cell', 'quarter'):
        assert own[field]['x'] > 0.2
        assert other[field]['x'] < 0
    assert own['derivative'] > 0.2
    assert other['derivative'] < 0
    assert other['effective_rank'] < 32 < own['effective_rank']


def test_features_that_do_not_vary_have_no_r2_and_no_invalid_json():
    report = measure([torch.ones(2, 3, 4, 4)], [torch.ones(2, 3, 4, 4)])
    assert report['one_cell']['x'] is None
    assert 'NaN' not in json.dumps(report)


def test_learned_generators_of_every_kind_of_neck():
    A, B = torch.randn(2, 4, 4)
    found = learned_generators({'neck.generator_x': A, 'neck.generator_y': B, 'backbone.w': A})
    assert torch.equal(found['A'], A)
    assert torch.equal(found['B'], B)
    shared = CommutingGenerators(4, num_generators=4)
    for parameter in shared.parameters():
        nn.init.normal_(parameter)
    found = learned_generators({f'neck.shared.{key}': value for key, value in shared.state_dict().items()})
    torch.testing.assert_close(found['A'], torch.stack(shared()[:2]))
    torch.testing.assert_close(found['B'], torch.stack(shared()[2:]))
    assert describe_generators(found)['commutator'] < 1e-5
    assert learned_generators({'backbone.generator_x': A, 'neck.weight': A}) == {}
    assert describe_generators({}) == {}


def test_eigenvalues_are_those_of_a_rotation():
    rotation = torch.tensor([[1.0, -2.0], [2.0, 1.0]])
    described = describe_generators({'A': rotation, 'B': torch.diag(torch.tensor([1.0, 2.0]))})
    assert sorted(described['eigenvalues']['A']) == [pytest.approx([1, -2]), pytest.approx([1, 2])]
    assert described['commutator'] > 0.1
