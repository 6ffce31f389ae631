import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbheat_mm.heat import (
    CommutingGenerators,
    block_diagonal,
    commutator,
    derivative_relation,
    effective_rank,
    fit_generators,
    laplacian_coupling,
    orthogonal_basis,
    propagator,
)

often = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
channels = st.integers(1, 7)
displacements = st.floats(-2, 2)
schemes = st.sampled_from(['euler', 1, 2, 5, 'exp'])


def _rng(seed):
    return torch.Generator().manual_seed(seed)


def _randn(*shape, seed):
    return torch.randn(*shape, generator=_rng(seed), dtype=torch.float64)


def _matrix(size, seed, norm=1.5):
    matrix = _randn(size, size, seed=seed)
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2)


def _commuting_pair(size, seed):
    """A, B with A B = B A, eigenvalues between 0.3 and 0.8 in magnitude, real and complex, in a skewed basis."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(2):
        radius = rng.uniform(0.3, 0.8, (size + 1) // 2)
        angle = rng.uniform(-np.pi, np.pi, size // 2)
        real = torch.tensor(radius * np.append(np.cos(angle), 1)[: len(radius)])
        blocks.append(block_diagonal(real, torch.tensor(radius[: size // 2] * np.sin(angle))))
    basis = orthogonal_basis(_randn(size, size, seed=seed)) + 0.1 * _matrix(size, seed + 1, norm=1)
    return [basis @ block @ torch.linalg.inv(basis) for block in blocks]


def _relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


# --- propagator ------------------------------------------------------------------------------------------------------


@often
@given(seeds, channels, displacements, displacements)
def test_exp_composes_and_inverts(seed, size, a, b):
    generator = _matrix(size, seed)
    P_a, P_b, P_ab = (propagator(generator, d, 'exp') for d in (a, b, a + b))
    torch.testing.assert_close(P_a @ P_b, P_ab, rtol=1e-10, atol=1e-10)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(P_a @ propagator(generator, -a, 'exp'), identity, rtol=1e-10, atol=1e-10)


@often
@given(seeds, channels, displacements)
def test_exp_is_scipys_and_the_eigenvalue_formula(seed, size, d):
    generator = _matrix(size, seed)
    actual = propagator(generator, d, 'exp')
    torch.testing.assert_close(actual, torch.from_numpy(scipy.linalg.expm(d * generator.numpy())))
    values, vectors = torch.linalg.eig(generator)
    by_eigenvalues = vectors @ torch.diag(torch.exp(d * values)) @ torch.linalg.inv(vectors)
    torch.testing.assert_close(actual, by_eigenvalues.real, rtol=1e-8, atol=1e-8)


@often
@given(seeds, channels, st.sampled_from([-1.0, 0.5, 1.0]))
def test_sub_steps_converge_to_exp_at_first_order(seed, size, d):
    generator = _matrix(size, seed)
    exact = propagator(generator, d, 'exp')
    error, half = ((propagator(generator, d, n) - exact).norm() for n in (256, 512))
    assert 1.9 < error / half < 2.1
    assert half < 0.05


@often
@given(seeds, channels, displacements)
def test_euler_is_one_sub_step_and_n_are_their_product(seed, size, d):
    generator = _matrix(size, seed)
    torch.testing.assert_close(propagator(generator, d), torch.eye(size, dtype=torch.float64) + d * generator)
    torch.testing.assert_close(propagator(generator, d, 1), propagator(generator, d, 'euler'))
    third = propagator(generator, d / 3, 'euler')
    torch.testing.assert_close(propagator(generator, d, 3), third @ third @ third)


@often
@given(seeds, schemes)
def test_propagator_of_batches_is_that_of_each(seed, scheme):
    generators = _randn(3, 4, 4, seed=seed)
    batch = propagator(generators, torch.tensor([-1.0, 0.5, 2.0]), scheme)
    for generator, d, expected in zip(generators, (-1.0, 0.5, 2.0), batch, strict=True):
        torch.testing.assert_close(propagator(generator, d, scheme), expected)
    one = propagator(generators[0], torch.tensor([1.0, -1.0]), scheme)
    torch.testing.assert_close(one[1], propagator(generators[0], -1, scheme))


@pytest.mark.parametrize('scheme', ['euler', 3, 'exp'])
def test_propagator_is_differentiable(scheme):
    generator = _matrix(3, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: propagator(g, 0.7, scheme), (generator,))
    zero = torch.zeros(3, 3, requires_grad=True)
    propagator(zero, 1, scheme).sum().backward()
    torch.testing.assert_close(zero.grad, torch.ones(3, 3))


@pytest.mark.parametrize('scheme', ['euler', 8, 'exp'])
def test_propagator_keeps_float32_under_autocast(scheme):
    generator = _matrix(16, 0).float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = propagator(generator, 1, scheme)
    torch.testing.assert_close(actual, propagator(generator, 1, scheme), rtol=0, atol=0)


@often
@given(seeds, channels, displacements, displacements, schemes)
def test_order_of_the_diagonal_matters_exactly_when_generators_do_not_commute(seed, size, dx, dy, scheme):
    A, B = _commuting_pair(size, seed)
    P_x, P_y = propagator(A, dx, scheme), propagator(B, dy, scheme)
    torch.testing.assert_close(P_y @ P_x, P_x @ P_y, rtol=1e-11, atol=1e-11)
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    P_x, P_y = propagator(A, 1, scheme), propagator(B, 1, scheme)
    assert (P_y @ P_x - P_x @ P_y).norm() > 1


@pytest.mark.parametrize(
    ('generator', 'displacement', 'scheme', 'error', 'message'),
    [
        (torch.eye(2), 1, 'rk4', ValueError, "scheme='rk4'"),
        (torch.eye(2), 1, 0, ValueError, 'scheme=0'),
        (torch.eye(2), 1, -2, ValueError, 'scheme=-2'),
        (torch.eye(2), 1, True, ValueError, 'scheme=True'),
        (torch.eye(2), 1, 2.0, ValueError, r'scheme=2\.0'),
        (torch.eye(2), 1, None, ValueError, 'scheme=None'),
        (torch.zeros(2, 3), 1, 'exp', ValueError, r'square.*\(2, 3\)'),
        (torch.zeros(2), 1, 'exp', ValueError, r'square.*\(2,\)'),
        (torch.eye(2).long(), 1, 'exp', TypeError, 'int64'),
        ([[1.0]], 1, 'exp', TypeError, 'list'),
        (torch.eye(2), '1', 'exp', TypeError, 'displacement must be a number.*str'),
    ],
)
def test_propagator_refuses(generator, displacement, scheme, error, message):
    with pytest.raises(error, match=message):
        propagator(generator, displacement, scheme)


# --- the coupled equation --------------------------------------------------------------------------------------------


@often
@given(seeds, channels)
def test_fields_satisfy_the_coupled_heat_equation(seed, size):
    A, B = _commuting_pair(size, seed)
    torch.testing.assert_close(commutator(A, B), torch.zeros_like(A), rtol=0, atol=1e-12)
    z0 = _randn(size, seed=seed + 2)
    h = 0.02
    steps = torch.arange(-2, 3) * h
    along_x = torch.stack([propagator(A, float(s), 'exp') for s in steps])
    along_y = torch.stack([propagator(B, float(s), 'exp') for s in steps])
    field = torch.einsum('yij,xjk,k->yxi', along_y, along_x, z0)
    # Fourth-order second differences at the middle of a 5 x 5 grid.
    stencil = torch.tensor([-1, 16, -30, 16, -1], dtype=torch.float64) / (12 * h**2)
    z_xx, z_yy = stencil @ field[2], stencil @ field[:, 2]
    residual = z_xx + laplacian_coupling(A, B) @ z_yy
    assert residual.norm() < 1e-6 * z0.norm()
    assert (z_xx - laplacian_coupling(A, B) @ z_yy).norm() > 1e-3 * z0.norm()


def test_laplacian_coupling_of_batches():
    A, B = _randn(3, 4, 4, seed=0), _randn(3, 4, 4, seed=1)
    expected = torch.stack([laplacian_coupling(a, b) for a, b in zip(A, B, strict=True)])
    torch.testing.assert_close(laplacian_coupling(A, B), expected)


def test_coupling_refuses():
    with pytest.raises(ValueError, match='B is singular'):
        laplacian_coupling(torch.eye(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match='B is singular'):
        laplacian_coupling(torch.eye(2), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r'one size: A \(2, 2\), B \(3, 3\)'):
        laplacian_coupling(torch.eye(2), torch.eye(3))
    with pytest.raises(ValueError, match='B must be square'):
        commutator(torch.eye(2), torch.zeros(2, 3))


# --- generators that commute by construction -------------------------------------------------------------------------


def _commutes(generators):
    A, B = generators
    return torch.linalg.matrix_norm(commutator(A, B)) < 1e-5 * torch.linalg.matrix_norm(A @ B)


def _train(module, steps, lr=0.05):
    size = len(module.skew)
    targets = torch.randn(2, size, size, generator=_rng(size))  # far from commuting
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for _ in range(steps):
        loss = sum((g - t).square().sum() for g, t in zip(module(), targets, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), targets.square().sum().item()


@pytest.mark.parametrize('size', [1, 2, 5, 16, 33])
def test_commuting_generators_stay_so_through_training_and_a_checkpoint(size, tmp_path):
    module = CommutingGenerators(size)
    assert all(not g.any() and g.shape == (size, size) and g.dtype == torch.float32 for g in module())
    for _ in range(3):
        loss, start = _train(module, 30)
        assert _commutes(module())
    assert loss < start  # it learned
    assert module.skew.any() or size <= 2  # a single pair is the same in every basis
    torch.save(module.state_dict(), tmp_path / 'weights.pth')
    loaded = CommutingGenerators(size)
    loaded.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True))
    for a, b in zip(module(), loaded(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert _commutes(loaded())


def test_generators_commute_far_from_the_start_and_under_autocast():
    module = CommutingGenerators(64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=10, generator=_rng(0))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        A, B = module()
    assert _commutes((A, B))
    assert not _commutes((A, B + 0.1 * torch.randn(64, 64, generator=_rng(1))))


def test_every_parameter_learns():
    module = CommutingGenerators(5)
    _train(module, 1)
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    assert module.real.grad.all()
    assert module.imag.grad.all()
    _train(module, 1)
    off_diagonal = ~torch.eye(5, dtype=torch.bool)
    assert module.skew.grad[off_diagonal].abs().max() > 0


@pytest.mark.parametrize('size', [2, 8])
def test_the_shared_basis_holds_the_isotropic_equation(size):
    module = CommutingGenerators(size)
    with torch.no_grad():
        module.skew.copy_(torch.randn(size, size, generator=_rng(1)))
        module.imag[0] = module.real[1] = torch.linspace(0.5, 2, size // 2)  # A = iB
    A, B = module()
    torch.testing.assert_close(laplacian_coupling(A, B), torch.eye(size), rtol=0, atol=1e-4)
    assert torch.linalg.eigvals(A).imag.abs().min() > 0.4


def test_real_eigenvalues_alone_leave_a_wave_equation():
    module = CommutingGenerators(6)
    with torch.no_grad():
        for parameter in (module.skew, module.real):
            parameter.copy_(torch.randn(parameter.shape, generator=_rng(2)))
    assert (torch.linalg.eigvals(laplacian_coupling(*module())).real < 0).all()


@often
@given(seeds, channels)
def test_basis_is_orthogonal_and_eigenvalues_are_the_named_ones(seed, size):
    basis = orthogonal_basis(10 * _randn(size, size, seed=seed))
    torch.testing.assert_close(basis @ basis.mT, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    real, imag = _randn((size + 1) // 2, seed=seed + 1), _randn(size // 2, seed=seed + 2)
    blocks = block_diagonal(real, imag)
    pairs = [(float(r), s * float(i)) for r, i in zip(real, imag, strict=False) for s in (1, -1)]
    expected = sorted(pairs + [(float(r), 0.0) for r in real[size // 2 :]])
    actual = torch.linalg.eigvals(basis @ blocks @ basis.mT)
    # Pairs share their real part, which rounding must not reorder.
    actual = sorted((round(float(v.real), 6), float(v.imag)) for v in actual)
    expected = sorted((round(r, 6), i) for r, i in expected)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_more_generators_share_one_basis():
    module = CommutingGenerators(6, num_generators=4)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=_rng(0))
    generators = module()
    assert len(generators) == 4
    assert all(_commutes((a, b)) for a in generators for b in generators)


def test_commuting_generators_refuse():
    with pytest.raises(ValueError, match='channels=0'):
        CommutingGenerators(0)
    with pytest.raises(ValueError, match='num_generators=0'):
        CommutingGenerators(4, num_generators=0)


# --- fitting ---------------------------------------------------------------------------------------------------------


def _fields(A, B, scheme='exp', displacement=1, cells=4, count=None, seed=0):
    """Maps (N, C, H, W) with z(x + d) = P_x z(x) and z(y + d) = P_y z(y) exactly, from random corners of d x d."""
    size, d = len(A), displacement
    z = _randn(count or size, d, d, size, seed=seed)
    rows = [z]
    for _ in range(cells - 1):
        rows.append(rows[-1] @ propagator(A, d, scheme).mT)
    z = torch.cat(rows, dim=2)
    rows = [z]
    for _ in range(cells - 1):
        rows.append(rows[-1] @ propagator(B, d, scheme).mT)
    return torch.cat(rows, dim=1).permute(0, 3, 1, 2)


@often
@given(seeds, channels, schemes, st.sampled_from([1, 2]))
def test_fit_recovers_the_generators(seed, size, scheme, d):
    A, B = _commuting_pair(size, seed)
    features = _fields(A, B, scheme, d, seed=seed)
    fit = fit_generators(features, d, scheme)
    assert _relative(fit.A, A) < 1e-6
    assert _relative(fit.B, B) < 1e-6
    assert fit.r2_x == pytest.approx(1, abs=1e-9)
    assert fit.r2_y == pytest.approx(1, abs=1e-9)
    assert max(fit.copy_r2_x, fit.copy_r2_y) < 1
    # The prediction is the propagator's, on other fields and in the named direction.
    z = _fields(A, B, scheme, d, seed=seed + 1)
    moved = torch.einsum('ij,njhw->nihw', propagator(fit.A, d, scheme), z[..., :-d])
    assert _relative(moved, z[..., d:]) < 1e-6


@pytest.mark.parametrize('scheme', ['exp', 4])
def test_fit_recovers_defective_generators(scheme):
    A = 0.3 * torch.eye(4, dtype=torch.float64) + torch.diag(torch.ones(3, dtype=torch.float64), 1)
    B = A @ A
    fit = fit_generators(_fields(A, B, scheme), scheme=scheme)
    assert max(_relative(fit.A, A), _relative(fit.B, B)) < 1e-6


def test_schemes_differ():
    A, B = _commuting_pair(4, 0)
    features = _fields(A, B, 'exp')
    for scheme in ('euler', 2):
        fit = fit_generators(features, scheme=scheme)
        assert fit.r2_x == pytest.approx(1)
        assert _relative(fit.A, A) > 0.01


def test_axes_are_not_confused():
    A, B = _commuting_pair(3, 0)
    features = _fields(A, B)[:, :, :3]  # not square
    fit, swapped = fit_generators(features), fit_generators(features.mT)
    torch.testing.assert_close(fit.A, swapped.B)
    torch.testing.assert_close(fit.B, swapped.A)
    assert (fit.r2_x, fit.copy_r2_x) == pytest.approx((swapped.r2_y, swapped.copy_r2_y))
    assert not torch.allclose(fit.A, fit.B)


def test_batches_are_visited_once_and_count_together():
    features = _randn(10, 4, 6, 5, seed=0).float() + 3
    whole = fit_generators(features)
    split = fit_generators(batch for batch in features.split([1, 2, 7]))
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b)
    assert whole.A.dtype == torch.float64
    assert effective_rank(features) == pytest.approx(effective_rank(iter(features.split(3))))
    a, b = derivative_relation(features), derivative_relation(iter(features.split(3)))
    torch.testing.assert_close(a.relation, b.relation)
    assert a.r2 == pytest.approx(b.r2)


def _r2(prediction, target):
    residual = (target - prediction).square().sum()
    return float(1 - residual / (target - target.mean((0, 2, 3), keepdim=True)).square().sum())


@often
@given(seeds)
def test_fit_and_r2_are_those_of_a_direct_computation(seed):
    mean = 2 * _randn(3, 1, 1, seed=seed)
    features, held_out = _randn(20, 3, 6, 5, seed=seed) + mean, _randn(9, 3, 5, 7, seed=seed + 1) + mean
    fit = fit_generators(features, 2, held_out=held_out)
    u, v = (z.transpose(0, 1).flatten(1).mT for z in (features[..., :-2], features[..., 2:]))
    step = torch.linalg.lstsq(u, v).solution.mT
    torch.testing.assert_close(torch.eye(3, dtype=torch.float64) + 2 * fit.A, step)
    u, v = held_out[..., :-2], held_out[..., 2:]
    assert fit.r2_x == pytest.approx(_r2(torch.einsum('ij,njhw->nihw', step, u), v))
    assert fit.copy_r2_x == pytest.approx(_r2(u, v))
    assert fit.copy_r2_y == pytest.approx(_r2(held_out[:, :, :-2], held_out[:, :, 2:]))


def test_white_noise_has_no_law_on_held_out_images():
    features, held_out = torch.randn(2, 6, 64, 14, 14, generator=_rng(0))
    own, fit = fit_generators(features), fit_generators(features, held_out=held_out)
    relation = derivative_relation(features, held_out)
    assert own.r2_x > 0.03  # what the fit says of itself
    assert derivative_relation(features).r2 > 0.03
    assert all(-0.2 < r2 < 0.02 for r2 in (fit.r2_x, fit.r2_y, relation.r2))
    # With enough images it is 0, not merely small; copying noise is as bad as adding it.
    features, held_out = torch.randn(2, 500, 8, 14, 14, generator=_rng(1))
    fit = fit_generators(iter(features.split(50)), 7, held_out=iter(held_out.split(50)))
    assert all(abs(r2) < 0.01 for r2 in (fit.r2_x, fit.r2_y, derivative_relation(features, held_out).r2))
    assert fit.copy_r2_x == pytest.approx(-1, abs=0.02)


@often
@given(seeds, channels)
def test_derivative_relation_is_that_of_the_generators(seed, size):
    A, B = _commuting_pair(size, seed)
    features = _fields(A, B, cells=4, count=2 * size, seed=seed)
    fit = derivative_relation(features)
    # Central differences of exponential fields are exactly sinh(A) z and sinh(B) z.
    sinh_A, sinh_B = ((propagator(g, 1, 'exp') - propagator(g, -1, 'exp')) / 2 for g in (A, B))
    assert _relative(fit.relation, sinh_A @ torch.linalg.inv(sinh_B)) < 1e-6
    assert fit.r2 == pytest.approx(1, abs=1e-9)


def test_derivative_relation_at_small_steps_is_a_over_b():
    A, B = _commuting_pair(4, 0)
    fine = derivative_relation(_fields(A / 100, B / 100, count=20))
    assert _relative(fine.relation, A @ torch.linalg.inv(B)) < 1e-4


def test_effective_rank():
    white = torch.randn(200, 8, 10, 10, generator=_rng(0))
    assert effective_rank(white) == pytest.approx(8, rel=0.01)
    assert effective_rank(white + 100) == pytest.approx(8, rel=0.01)  # of the covariance: means do not count
    assert effective_rank(white[:, :1].expand(-1, 8, -1, -1)) == pytest.approx(1)
    scale = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0.0])[:, None, None]
    assert effective_rank(white * scale) == pytest.approx(3, rel=0.01)
    assert math.isnan(effective_rank(torch.ones(1, 2, 3, 3)))


def test_dead_channels_are_copied():
    A, B = _commuting_pair(3, 0)
    alive = _fields(A, B)
    features = torch.cat([alive, torch.zeros_like(alive[:, :2])], dim=1)
    fit = fit_generators(features)
    expected = fit_generators(alive)
    torch.testing.assert_close(fit.A[:3, :3], expected.A)
    assert not fit.A[3:].any()
    assert not fit.A[:, 3:].any()
    assert fit.r2_x == pytest.approx(1)


def test_ridge_draws_towards_copying():
    features = _randn(20, 4, 6, 6, seed=0)
    norms = [fit_generators(features, ridge=ridge).A.norm() for ridge in (0, 1, 10, 1e9)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-6
    large = fit_generators(features * 1000, ridge=1)
    torch.testing.assert_close(large.A, fit_generators(features, ridge=1).A)  # whatever the features' scale
    fit = fit_generators(features, ridge=1e9)
    assert (fit.r2_x, fit.r2_y) == pytest.approx((fit.copy_r2_x, fit.copy_r2_y), abs=1e-6)


@pytest.mark.parametrize('scheme', ['exp', 2])
def test_reflections_have_no_logarithm_and_no_root(scheme):
    step = torch.tensor([[-0.5, 0.0], [0.0, 0.7]], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    features = _fields(step - identity, step - identity, 'euler')
    with pytest.raises(ValueError, match=r"along x: 1 of its 2 eigenvalues.*-0\.5.*scheme='euler'.*ridge"):
        fit_generators(features, scheme=scheme)
    torch.testing.assert_close(fit_generators(features).A, step - identity)
    assert fit_generators(features, scheme=scheme, ridge=10).A.isfinite().all()


GOOD = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(features=GOOD, scheme='heun'), "scheme='heun'"),
        (dict(features=GOOD, displacement=0), 'displacement=0'),
        (dict(features=GOOD, displacement=-1), 'displacement=-1'),
        (dict(features=GOOD, displacement=1.5), r'displacement=1\.5'),
        (dict(features=GOOD, displacement=4), r'features: 5 cells a side are needed, the maps have \(4, 4\)'),
        (dict(features=GOOD, ridge=-1.0), r'ridge=-1\.0'),
        (dict(features=GOOD, ridge=math.nan), 'ridge=nan'),
        (dict(features=GOOD[0]), r'maps \(N, C, H, W\).*\(3, 4, 4\)'),
        (dict(features=[GOOD, 'maps']), 'not a str'),
        (dict(features=[GOOD, GOOD[:, :2]]), 'one batch has 3 channels, another 2'),
        (dict(features=[]), 'features holds no batch'),
        (dict(features=GOOD[:0]), 'features holds no positions'),
        (dict(features=GOOD * math.nan), 'features holds numbers that are not finite'),
        (dict(features=GOOD + 1, held_out=iter([])), 'held_out holds no batch'),
        (dict(features=GOOD + 1, held_out=GOOD / 0), 'held_out holds numbers that are not finite'),
    ],
)
def test_fit_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_generators(**arguments)


def test_other_measures_refuse():
    with pytest.raises(ValueError, match='3 cells a side are needed'):
        derivative_relation(GOOD[..., :2])
    with pytest.raises(ValueError, match='held_out'):
        derivative_relation(GOOD, held_out=[])
    with pytest.raises(ValueError, match='not finite'):
        effective_rank(GOOD * math.inf)
    with pytest.raises(ValueError, match='maps'):
        effective_rank(GOOD[0])
