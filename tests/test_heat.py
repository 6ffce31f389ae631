import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from helpers.fields import commuting_pair, matrix, often, randn, rng, schemes, seeds, sizes
from hypothesis import given
from hypothesis import strategies as st

from qbheat_mm.heat import (
    CommutingGenerators,
    block_diagonal,
    commutator,
    laplacian_coupling,
    norm_linear_step,
    orthogonal_basis,
    propagator,
)

displacements = st.floats(-2, 2)


# --- propagator ------------------------------------------------------------------------------------------------------


@often
@given(seeds, sizes, displacements, displacements)
def test_exp_composes_and_inverts(seed, size, a, b):
    generator = matrix(size, seed)
    P_a, P_b, P_ab = (propagator(generator, d, 'exp') for d in (a, b, a + b))
    torch.testing.assert_close(P_a @ P_b, P_ab, rtol=1e-10, atol=1e-10)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(P_a @ propagator(generator, -a, 'exp'), identity, rtol=1e-10, atol=1e-10)


@often
@given(seeds, sizes, displacements)
def test_exp_is_scipys_and_the_eigenvalue_formula(seed, size, d):
    generator = matrix(size, seed)
    actual = propagator(generator, d, 'exp')
    torch.testing.assert_close(actual, torch.from_numpy(scipy.linalg.expm(d * generator.numpy())))
    values, vectors = torch.linalg.eig(generator)
    by_eigenvalues = vectors @ torch.diag(torch.exp(d * values)) @ torch.linalg.inv(vectors)
    torch.testing.assert_close(actual, by_eigenvalues.real, rtol=1e-8, atol=1e-8)


@often
@given(seeds, sizes, st.sampled_from([-1.0, 0.5, 1.0]))
def test_sub_steps_converge_to_exp_at_first_order(seed, size, d):
    generator = matrix(size, seed)
    exact = propagator(generator, d, 'exp')
    error, half = ((propagator(generator, d, n) - exact).norm() for n in (256, 512))
    assert 1.9 < error / half < 2.1
    assert half < 0.05


@often
@given(seeds, sizes, displacements)
def test_euler_is_one_sub_step_and_n_are_their_product(seed, size, d):
    generator = matrix(size, seed)
    torch.testing.assert_close(propagator(generator, d), torch.eye(size, dtype=torch.float64) + d * generator)
    torch.testing.assert_close(propagator(generator, d, 1), propagator(generator, d, 'euler'))
    third = propagator(generator, d / 3, 'euler')
    torch.testing.assert_close(propagator(generator, d, 3), third @ third @ third)


@often
@given(seeds, schemes)
def test_propagator_of_batches_is_that_of_each(seed, scheme):
    generators = randn(3, 4, 4, seed=seed)
    batch = propagator(generators, torch.tensor([-1.0, 0.5, 2.0]), scheme)
    for generator, d, expected in zip(generators, (-1.0, 0.5, 2.0), batch, strict=True):
        torch.testing.assert_close(propagator(generator, d, scheme), expected)
    one = propagator(generators[0], torch.tensor([1.0, -1.0]), scheme)
    torch.testing.assert_close(one[1], propagator(generators[0], -1, scheme))


@pytest.mark.parametrize('scheme', ['euler', 3, 'exp'])
def test_propagator_is_differentiable_and_keeps_float32_under_autocast(scheme):
    generator = matrix(3, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: propagator(g, 0.7, scheme), (generator,))
    zero = torch.zeros(3, 3, requires_grad=True)
    propagator(zero, 1, scheme).sum().backward()
    torch.testing.assert_close(zero.grad, torch.ones(3, 3))
    generator = matrix(16, 0).float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = propagator(generator, 1, scheme)
    torch.testing.assert_close(actual, propagator(generator, 1, scheme), rtol=0, atol=0)


@often
@given(seeds, sizes, displacements, displacements, schemes)
def test_order_of_the_diagonal_matters_exactly_when_generators_do_not_commute(seed, size, dx, dy, scheme):
    A, B = commuting_pair(size, seed)
    P_x, P_y = propagator(A, dx, scheme), propagator(B, dy, scheme)
    torch.testing.assert_close(P_y @ P_x, P_x @ P_y, rtol=1e-11, atol=1e-11)
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    P_x, P_y = propagator(A, 1, scheme), propagator(B, 1, scheme)
    assert (P_y @ P_x - P_x @ P_y).norm() > 1


# --- the normalized law ----------------------------------------------------------------------------------------------


@often
@given(seeds, st.sampled_from([3, 8]), st.sampled_from([-1.0, 0.5, 1.0]))
def test_sub_steps_of_the_normalized_law_converge_to_its_flow_at_first_order(seed, size, d):
    generator, z = 0.3 * matrix(size, seed), randn(2, size, seed=seed + 1)

    def velocity(_, flat):
        rows = torch.from_numpy(flat).view(2, size)
        centered = rows - rows.mean(-1, keepdim=True)
        return (centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ generator.mT).flatten().numpy()

    flow = scipy.integrate.solve_ivp(velocity, (0, d), z.flatten().numpy(), rtol=1e-11, atol=1e-12).y[:, -1]
    error, half = ((norm_linear_step(z, generator, d, n).flatten().numpy() - flow) for n in (512, 1024))
    assert np.abs(half).max() < 0.02
    assert 1.8 < np.linalg.norm(error) / np.linalg.norm(half) < 2.2


@often
@given(seeds, sizes, displacements, st.floats(0.5, 20), st.floats(-5, 5))
def test_the_normalized_law_moves_alike_whatever_scale_and_mean(seed, size, d, scale, mean):
    generator, z = matrix(size + 1, seed), 10 * randn(3, size + 1, seed=seed + 1)
    moved = norm_linear_step(z, generator, d) - z
    scaled = scale * z + mean
    torch.testing.assert_close(norm_linear_step(scaled, generator, d) - scaled, moved, rtol=1e-2, atol=1e-3)
    assert torch.equal(norm_linear_step(z, torch.zeros_like(generator), d), z)


@often
@given(seeds, sizes)
def test_displacements_of_the_normalized_law_are_broadcast(seed, size):
    generator, z = matrix(size, seed), randn(4, 2, size, seed=seed + 1)
    d = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    together = norm_linear_step(z, generator, d[:, None, None], 2)
    for each, displacement, expected in zip(z, d, together):
        torch.testing.assert_close(norm_linear_step(each, generator, float(displacement), 2), expected)


# --- the coupled equation --------------------------------------------------------------------------------------------


@often
@given(seeds, sizes)
def test_fields_satisfy_the_coupled_heat_equation(seed, size):
    A, B = commuting_pair(size, seed)
    torch.testing.assert_close(commutator(A, B), torch.zeros_like(A), rtol=0, atol=1e-12)
    z0 = randn(size, seed=seed + 2)
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
    A, B = randn(3, 4, 4, seed=0), randn(3, 4, 4, seed=1)
    expected = torch.stack([laplacian_coupling(a, b) for a, b in zip(A, B, strict=True)])
    torch.testing.assert_close(laplacian_coupling(A, B), expected)


# --- generators that commute by construction -------------------------------------------------------------------------


def _commutes(generators):
    A, B = generators
    return torch.linalg.matrix_norm(commutator(A, B)) < 1e-5 * torch.linalg.matrix_norm(A @ B)


def _train(module, steps, lr=0.05):
    size = len(module.skew)
    targets = torch.randn(2, size, size, generator=rng(size))  # far from commuting
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
        torch.nn.init.normal_(parameter, std=10, generator=rng(0))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        A, B = module()
    assert _commutes((A, B))
    assert not _commutes((A, B + 0.1 * torch.randn(64, 64, generator=rng(1))))


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
        module.skew.copy_(torch.randn(size, size, generator=rng(1)))
        module.imag[0] = module.real[1] = torch.linspace(0.5, 2, size // 2)  # A = iB
    A, B = module()
    torch.testing.assert_close(laplacian_coupling(A, B), torch.eye(size), rtol=0, atol=1e-4)
    assert torch.linalg.eigvals(A).imag.abs().min() > 0.4


def test_real_eigenvalues_alone_leave_a_wave_equation():
    module = CommutingGenerators(6)
    with torch.no_grad():
        for parameter in (module.skew, module.real):
            parameter.copy_(torch.randn(parameter.shape, generator=rng(2)))
    assert (torch.linalg.eigvals(laplacian_coupling(*module())).real < 0).all()


@often
@given(seeds, sizes)
def test_basis_is_orthogonal_and_eigenvalues_are_the_named_ones(seed, size):
    basis = orthogonal_basis(10 * randn(size, size, seed=seed))
    torch.testing.assert_close(basis @ basis.mT, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    real, imag = randn((size + 1) // 2, seed=seed + 1), randn(size // 2, seed=seed + 2)
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
        torch.nn.init.normal_(parameter, generator=rng(0))
    generators = module()
    assert len(generators) == 4
    assert all(_commutes((a, b)) for a in generators for b in generators)


@pytest.mark.parametrize(
    ('function', 'arguments', 'error', 'message'),
    [
        (propagator, (torch.eye(2), 1, 'rk4'), ValueError, "scheme='rk4'"),
        (propagator, (torch.eye(2), 1, 0), ValueError, 'scheme=0'),
        (propagator, (torch.eye(2), 1, -2), ValueError, 'scheme=-2'),
        (propagator, (torch.eye(2), 1, True), ValueError, 'scheme=True'),
        (propagator, (torch.eye(2), 1, 2.0), ValueError, r'scheme=2\.0'),
        (propagator, (torch.eye(2), 1, None), ValueError, 'scheme=None'),
        (propagator, (torch.zeros(2, 3), 1, 'exp'), ValueError, r'square.*\(2, 3\)'),
        (propagator, (torch.zeros(2), 1, 'exp'), ValueError, r'square.*\(2,\)'),
        (propagator, (torch.eye(2).long(), 1, 'exp'), TypeError, 'int64'),
        (propagator, ([[1.0]], 1, 'exp'), TypeError, 'list'),
        (propagator, (torch.eye(2), '1', 'exp'), TypeError, 'displacement must be a number.*str'),
        (laplacian_coupling, (torch.eye(3), torch.zeros(3, 3)), ValueError, 'B is singular'),
        (laplacian_coupling, (torch.eye(2), torch.ones(2, 2)), ValueError, 'B is singular'),
        (laplacian_coupling, (torch.eye(2), torch.eye(3)), ValueError, r'one size: A \(2, 2\), B \(3, 3\)'),
        (commutator, (torch.eye(2), torch.zeros(2, 3)), ValueError, 'B must be square'),
        (CommutingGenerators, (0,), ValueError, 'channels=0'),
        (CommutingGenerators, (4, 0), ValueError, 'num_generators=0'),
    ],
)
def test_invalid_arguments_are_refused(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
