"""The mathematics of QB-Heat in plain torch: z_x = A z, z_y = B z on features z(x, y) in R^C.

Source: `Self-Supervised Learning based on Heat Equation <https://arxiv.org/abs/2211.13228>`_. Conventions, here and
everywhere in the package:

- x runs along the width (a tensor's last dimension), y along the height (the one before);
- matrices act on column vectors, z' = P z;
- generators A (along x) and B (along y) are per unit of displacement, whatever the unit of the displacement is;
- the diagonal goes along x first: z(x + dx, y + dy) = P_y(dy) P_x(dx) z(x, y).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Scheme = str | int
Features = Tensor | Iterable[Tensor]


def check_scheme(scheme: Scheme) -> Scheme:
    """Return ``scheme`` where it is ``'euler'``, ``'exp'`` or a whole number of sub-steps.

    Raises:
        ValueError: If it is none of these.
    """
    is_count = isinstance(scheme, int) and not isinstance(scheme, bool) and scheme >= 1
    if not is_count and scheme not in ('euler', 'exp'):
        raise ValueError(f"scheme={scheme!r}: use 'euler', 'exp', or a number of Euler sub-steps, 1 or more")
    return scheme


def _check_square(**matrices: Tensor) -> None:
    for name, matrix in matrices.items():
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise TypeError(f'{name} must be a tensor of floating-point numbers, not {_describe(matrix)}')
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f'{name} must be square, (..., C, C), not {tuple(matrix.shape)}')
    if len({matrix.shape[-1] for matrix in matrices.values()}) > 1:
        sizes = ', '.join(f'{name} {tuple(matrix.shape)}' for name, matrix in matrices.items())
        raise ValueError(f'the matrices must have one size: {sizes}')


def _describe(value: object) -> str:
    return f'a tensor of {value.dtype}' if isinstance(value, Tensor) else f'a {type(value).__name__}'


def propagator(generator: Tensor, displacement: float | Tensor, scheme: Scheme = 'euler') -> Tensor:
    """The matrix P that carries features along one axis, z(x + d) = P z(x).

    ``'euler'`` is the finite difference of the paper, I + d A; an integer n composes n steps of it,
    (I + d A / n)^n; ``'exp'`` is the exact flow of z_x = A z, exp(d A), which the sub-steps approach at first order.
    Differentiable; computed in the generator's own precision, also under autocast.

    Args:
        generator: A, (..., C, C), per unit of displacement.
        displacement: d, of either sign; a tensor is broadcast against the generator's leading dimensions.
        scheme: ``'euler'``, a number of Euler sub-steps, or ``'exp'``.

    Returns:
        P, (..., C, C).

    Raises:
        TypeError: If the generator is no floating-point tensor or the displacement no number.
        ValueError: If the generator is not square, or the scheme is unknown.
    """
    check_scheme(scheme)
    _check_square(generator=generator)
    if isinstance(displacement, Tensor):
        displacement = displacement.to(generator)[..., None, None]
    elif isinstance(displacement, bool) or not isinstance(displacement, (int, float)):
        raise TypeError(f'displacement must be a number or a tensor of numbers, not {_describe(displacement)}')
    with torch.autocast(generator.device.type, enabled=False):
        step = displacement * generator
        if scheme == 'exp':
            return torch.linalg.matrix_exp(step)
        identity = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
        if scheme == 'euler':
            return identity + step
        return torch.linalg.matrix_power(identity + step / scheme, scheme)


def commutator(A: Tensor, B: Tensor) -> Tensor:
    """AB - BA, (..., C, C): zero exactly where the order of horizontal and vertical steps does not matter.

    Raises:
        TypeError, ValueError: If the arguments are not square matrices of one size.
    """
    _check_square(A=A, B=B)
    return A @ B - B @ A


def laplacian_coupling(A: Tensor, B: Tensor) -> Tensor:
    """S = -A^2 B^-2 of the coupled heat equation z_xx + S z_yy = 0, which z_x = A z and z_y = B z imply.

    Args:
        A: (..., C, C), along x.
        B: (..., C, C), along y, invertible.

    Returns:
        S, (..., C, C). S = I is the isotropic equation; it needs complex eigenvalues, A = iB for one.

    Raises:
        TypeError, ValueError: If the arguments are not square matrices of one size.
        ValueError: If B is singular to rounding: then no S follows from A and B.
    """
    _check_square(A=A, B=B)
    if bool((torch.linalg.matrix_rank(B) < B.shape[-1]).any()):
        raise ValueError('B is singular to rounding, so S = -A^2 B^-2 does not exist (are the generators still zero?)')
    return -torch.linalg.solve(B, torch.linalg.solve(B, A @ A, left=False), left=False)


# --- Generators that commute by construction -------------------------------------------------------------------------


def orthogonal_basis(skew: Tensor) -> Tensor:
    """The Cayley transform Q = (I + K)^-1 (I - K) of K = skew - skew^T: an orthogonal matrix, I for zero.

    Args:
        skew: Any (C, C) matrix.

    Returns:
        Q, (C, C), in float64.
    """
    skew = skew.double()
    skew = skew - skew.mT
    identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity + skew, identity - skew)


def block_diagonal(real: Tensor, imag: Tensor) -> Tensor:
    """Block-diagonal matrices of [[r, -s], [s, r]], whose eigenvalues are r +- is; all of them commute.

    Args:
        real: r of each block, (..., ceil(C / 2)); for an odd C the last one is a block by itself.
        imag: s of each block, (..., floor(C / 2)).

    Returns:
        (..., C, C).
    """
    channels = real.shape[-1] + imag.shape[-1]
    diagonal = real.repeat_interleave(2, dim=-1)[..., :channels]
    below = torch.stack([imag, torch.zeros_like(imag)], dim=-1).flatten(-2)[..., : channels - 1]
    return torch.diag_embed(diagonal) + torch.diag_embed(below, offset=-1) - torch.diag_embed(below, offset=1)


class CommutingGenerators(nn.Module):
    """Learned generators that commute by construction: Q D Q^T with one orthogonal Q for all of them.

    D is block-diagonal with rotation-and-scaling blocks, so eigenvalues come in complex pairs r +- is. They must be
    able to: real ones leave S = -A^2 B^-2 with negative eigenvalues only, a wave equation, while the isotropic S = I
    is A = iB. The last block of an odd number of channels is 1 x 1 and real, so S = I needs an even one.

    The Cayley transform leaves out the Q with an eigenvalue -1, which loses nothing: flipping the signs of some
    basis vectors leads out of that set, and turns D into another D.

    All generators are zero at the start. Their eigenvalues learn from the first step on, the basis from the second.

    Args:
        channels: C.
        num_generators: How many share the basis: as a rule 2, the first along x, the second along y.

    Raises:
        ValueError: If either is less than 1.
    """

    def __init__(self, channels: int, num_generators: int = 2) -> None:
        super().__init__()
        for name, value in (('channels', channels), ('num_generators', num_generators)):
            if value < 1:
                raise ValueError(f'{name}={value} must be 1 or more')
        self.skew = nn.Parameter(torch.zeros(channels, channels))
        self.real = nn.Parameter(torch.zeros(num_generators, (channels + 1) // 2))
        self.imag = nn.Parameter(torch.zeros(num_generators, channels // 2))

    def forward(self) -> tuple[Tensor, ...]:
        """The generators, (C, C) each, in the parameters' dtype: A, B where there are two.

        Multiplied in float64: TF32, or half precision under autocast, would leave them far from commuting.
        """
        basis = orthogonal_basis(self.skew)
        blocks = block_diagonal(self.real.double(), self.imag.double())
        return (basis @ blocks @ basis.mT).to(self.skew.dtype).unbind()


# --- Measuring the hypothesis on features ----------------------------------------------------------------------------


class GeneratorFit(NamedTuple):
    """What `fit_generators` found; see there."""

    A: Tensor
    B: Tensor
    r2_x: float
    r2_y: float
    copy_r2_x: float
    copy_r2_y: float


class DerivativeFit(NamedTuple):
    """What `derivative_relation` found; see there."""

    relation: Tensor
    r2: float


@dataclass
class _Moments:
    """Sums over pairs (u, v) of C-vectors, in float64: all that a linear map u -> v and its R^2 depend on."""

    uu: Tensor | float = 0.0  # sum of u u^T
    vu: Tensor | float = 0.0  # sum of v u^T
    v: Tensor | float = 0.0  # sum of v
    vv: Tensor | float = 0.0  # sum of |v|^2
    count: int = 0

    def add(self, u: Tensor, v: Tensor) -> None:
        """Add the pairs at all positions of two maps, (N, C, h, w) each."""
        u, v = (z.transpose(0, 1).flatten(1) for z in (u, v))  # (C, pairs)
        self.uu = self.uu + u @ u.mT
        self.vu = self.vu + v @ u.mT
        self.v = self.v + v.sum(1)
        self.vv = self.vv + v.square().sum()
        self.count += u.shape[1]

    def r2(self, matrix: Tensor) -> float:
        """R^2 of predicting v as ``matrix`` u."""
        residual = self.vv - 2 * (matrix * self.vu).sum() + ((matrix @ self.uu) * matrix).sum()
        total = self.vv - self.v.square().sum() / self.count
        return float(1 - residual / total)


def _batches(features: Features, smallest: int, name: str) -> Iterable[Tensor]:
    """The (N, C, H, W) batches in float64; refuses what is none, or less than ``smallest`` cells a side."""
    if isinstance(features, Tensor):
        features = features.split(64) if features.ndim == 4 else [features]
    channels = None
    for batch in features:
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            shape = f' of shape {tuple(batch.shape)}' if isinstance(batch, Tensor) else ''
            raise ValueError(f'{name} must hold maps (N, C, H, W), not {_describe(batch)}{shape}')
        if min(batch.shape[2:]) < smallest:
            raise ValueError(f'{name}: {smallest} cells a side are needed, the maps have {tuple(batch.shape[2:])}')
        if channels not in (None, batch.shape[1]):
            raise ValueError(f'{name}: one batch has {channels} channels, another {batch.shape[1]}')
        channels = batch.shape[1]
        yield batch.detach().double()
    if channels is None:
        raise ValueError(f'{name} holds no batch (an iterator that was used up before?)')


def _check_finite(moments: _Moments, name: str) -> _Moments:
    if moments.count == 0:
        raise ValueError(f'{name} holds no positions')
    if not torch.isfinite(moments.vv + moments.uu.sum()):
        raise ValueError(f'{name} holds numbers that are not finite')
    return moments


def _step_moments(features: Features, displacement: int, name: str) -> tuple[_Moments, _Moments]:
    """Pairs z(x), z(x + d) and z(y), z(y + d)."""
    along_x, along_y = _Moments(), _Moments()
    for z in _batches(features, displacement + 1, name):
        along_x.add(z[..., :-displacement], z[..., displacement:])
        along_y.add(z[..., :-displacement, :], z[..., displacement:, :])
    return _check_finite(along_x, name), _check_finite(along_y, name)


def _derivative_moments(features: Features, name: str) -> _Moments:
    """Pairs z_y, z_x of central differences at all inner positions."""
    moments = _Moments()
    for z in _batches(features, 3, name):
        z_x = (z[..., 1:-1, 2:] - z[..., 1:-1, :-2]) / 2
        z_y = (z[..., 2:, 1:-1] - z[..., :-2, 1:-1]) / 2
        moments.add(z_y, z_x)
    return _check_finite(moments, name)


def fit_generators(
    features: Features,
    displacement: int = 1,
    scheme: Scheme = 'euler',
    ridge: float = 0.0,
    held_out: Features | None = None,
) -> GeneratorFit:
    """Least-squares generators of a feature map, and how well they predict it.

    Along each axis the propagator P minimizes |z(x + d) - P z(x)|^2 over all positions, and the generator is the one
    that ``scheme`` turns into P. As in the method there is no intercept: the line goes through the origin. Batches
    are visited once and only C x C sums are kept, in float64, so the number of positions costs no memory. Directions
    in which features never vary are left as they are (the least change from P = I).

    R^2 is 1 - residual / total, each summed over all channels and positions, of the *value* z(x + d); the total is
    taken around the mean of each channel. 1 is exact, 0 is no better than the mean, less is worse, and features that
    do not vary have none (nan). Smooth features reach a high R^2 under any law, so compare with copying z(x).

    Args:
        features: Maps (N, C, H, W): one tensor, or any iterable of batches.
        displacement: d in cells; the generators are per cell.
        scheme: ``'euler'``; n, whose generator takes the principal n-th root of P; or ``'exp'``, the principal
            logarithm. Both need eigenvalues off the negative real axis, and find generators whose step per
            displacement turns by less than pi.
        ridge: Shrinks the generators towards 0, P towards copying; in units of the mean square of a channel.
        held_out: Batches as ``features`` on which R^2 is taken. Without it, R^2 is the fit's own.

    Returns:
        A, B, (C, C) in float64; R^2 along x and y; R^2 of copying, z(x + d) = z(x), along x and y.

    Raises:
        TypeError, ValueError: If an argument is of another kind, features hold no pair of positions or are not
            finite, or the fitted propagator has no real principal root or logarithm.
    """
    check_scheme(scheme)
    if isinstance(displacement, bool) or not isinstance(displacement, int) or displacement < 1:
        raise ValueError(f'displacement={displacement!r} must be a whole number of cells, 1 or more')
    if not ridge >= 0:
        raise ValueError(f'ridge={ridge!r} must be 0 or more')
    fitted = _step_moments(features, displacement, 'features')
    propagators = [_fit_step(moments, ridge) for moments in fitted]
    generators = [
        _invert_scheme(step, scheme, axis) / displacement for step, axis in zip(propagators, 'xy', strict=True)
    ]
    tested = fitted if held_out is None else _step_moments(held_out, displacement, 'held_out')
    copy = torch.eye(len(propagators[0]), dtype=torch.float64, device=propagators[0].device)
    r2 = [moments.r2(step) for moments, step in zip(tested, propagators, strict=True)]
    return GeneratorFit(*generators, *r2, *(moments.r2(copy) for moments in tested))


def derivative_relation(features: Features, held_out: Features | None = None) -> DerivativeFit:
    """The hypothesis itself: the linear map D with z_x = D z_y, which is A B^-1 where z_x = A z and z_y = B z.

    Derivatives are central differences, (z(x + 1) - z(x - 1)) / 2. Forward differences will not do: those along x and
    along y share the point z(x, y), which alone gives white noise an R^2 of 0.25.

    Args:
        features: Maps (N, C, H, W), 3 cells a side or more: one tensor, or any iterable of batches.
        held_out: Batches as ``features`` on which R^2 is taken. Without it, R^2 is the fit's own.

    Returns:
        D, (C, C) in float64, fitted without an intercept; R^2 of z_x, defined as in `fit_generators`.

    Raises:
        ValueError: If the features are of another shape or not finite.
    """
    fitted = _derivative_moments(features, 'features')
    relation = fitted.vu @ torch.linalg.pinv(fitted.uu, hermitian=True)
    tested = fitted if held_out is None else _derivative_moments(held_out, 'held_out')
    return DerivativeFit(relation, tested.r2(relation))


def effective_rank(features: Features) -> float:
    """How many directions features use: exp of the entropy of the covariance's normalized eigenvalues.

    Between 1, one direction carries all variance, and C, all carry the same. Source: Roy and Vetterli, `The effective
    rank <https://ieeexplore.ieee.org/document/7098875>`_, on the eigenvalues of the covariance.

    Args:
        features: Maps (N, C, H, W): one tensor, or any iterable of batches.

    Returns:
        The effective rank; nan where features do not vary.

    Raises:
        ValueError: If the features are of another shape or not finite.
    """
    moments = _Moments()
    for z in _batches(features, 1, 'features'):
        moments.add(z, z)
    _check_finite(moments, 'features')
    covariance = moments.uu / moments.count - torch.outer(moments.v, moments.v) / moments.count**2
    spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


def _fit_step(moments: _Moments, ridge: float) -> Tensor:
    """The P of v = P u. What is fitted is P - I, so that the ridge and the null space of u lead to copying."""
    identity = torch.eye(len(moments.uu), dtype=torch.float64, device=moments.uu.device)
    normal = moments.uu + ridge * moments.uu.diagonal().mean() * identity
    return identity + (moments.vu - moments.uu) @ torch.linalg.pinv(normal, hermitian=True)


def _invert_scheme(step: Tensor, scheme: Scheme, axis: str) -> Tensor:
    """The d A that ``scheme`` turns into ``step``."""
    identity = torch.eye(len(step), dtype=step.dtype, device=step.device)
    if scheme in ('euler', 1):
        return step - identity
    try:
        logarithm = _principal_logarithm(step)
    except ValueError as error:
        raise ValueError(
            f'scheme={scheme!r}: no generator leads to the propagator fitted along {axis}: {error}. Use '
            "scheme='euler', or a larger ridge, which draws the propagator towards the identity"
        ) from error
    if scheme == 'exp':
        return logarithm
    return scheme * (torch.linalg.matrix_exp(logarithm / scheme) - identity)


def _principal_logarithm(matrix: Tensor) -> Tensor:
    """log(P) by inverse scaling and squaring: log(P) = 2^k log(P^(1 / 2^k)); defective matrices are welcome.

    Source: Higham, Functions of Matrices, 2008, chapters 6 and 11.
    """
    eigenvalues = torch.linalg.eigvals(matrix)
    negative = eigenvalues.real[(eigenvalues.imag == 0) & (eigenvalues.real <= 0)]
    if len(negative):
        raise ValueError(
            f'{len(negative)} of its {len(matrix)} eigenvalues lie on the negative real axis (one is '
            f'{negative.min():.3g}), where there is no real logarithm or root'
        )
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    root, doublings = matrix, 0
    while torch.linalg.matrix_norm(root - identity, 1) > 0.25 and doublings < 64:
        root, doublings = _square_root(root), doublings + 1
    # log(I + X) is the integral of X (I + t X)^-1 over t in [0, 1]; 8 Gauss nodes are exact to rounding here.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    excess = root - identity
    logarithm = 2**doublings * sum(
        w / 2 * torch.linalg.solve(identity + (t + 1) / 2 * excess, excess)
        for t, w in zip(nodes.tolist(), weights.tolist(), strict=True)
    )
    error = torch.linalg.matrix_norm(torch.linalg.matrix_exp(logarithm) - matrix) / torch.linalg.matrix_norm(matrix)
    if not error < 1e-6:
        raise ValueError('it is too close to a singular one, or to one with negative eigenvalues, for a logarithm')
    return logarithm


def _square_root(matrix: Tensor) -> Tensor:
    """The principal square root, by the product form of the Denman-Beavers iteration."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    root, product = matrix, matrix  # converge to the square root and to the identity, quadratically in the end
    for _ in range(64):
        inverse = torch.linalg.inv(product)
        root = root @ (identity + inverse) / 2
        product = (identity + (product + inverse) / 2) / 2
        if torch.linalg.matrix_norm(product - identity) < 1e-12:
            break
    return root
