"""The heat equation of QB-Heat in plain torch: z_x = A z, z_y = B z on features z(x, y) in R^C.

Source: `Self-Supervised Learning based on Heat Equation <https://arxiv.org/abs/2211.13228>`_. Conventions, here and
everywhere in the package:

- x runs along the width (a tensor's last dimension), y along the height (the one before);
- matrices act on column vectors, z' = P z;
- generators A (along x) and B (along y) are per unit of displacement, in any unit;
- the diagonal goes along x first: z(x + dx, y + dy) = P_y(dy) P_x(dx) z(x, y).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scheme = str | int


def check_scheme(scheme: Scheme) -> Scheme:
    """Return ``scheme`` if it is valid: ``'euler'``, ``'exp'`` or a number of sub-steps.

    Raises:
        ValueError: If it is not.
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
        TypeError: If the generator is not a floating-point tensor or the displacement is not a number.
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
        sub_steps = scheme if isinstance(scheme, int) else 1
        return torch.linalg.matrix_power(identity + step / sub_steps, sub_steps)


def norm_linear_step(z: Tensor, generator: Tensor, displacement: float | Tensor, sub_steps: int = 1) -> Tensor:
    """Features one displacement away under the normalized law z_x = A z^, by Euler's method.

    z^ is z with mean 0 and variance 1 over the channels. The law is that of the successor of QB-Heat, `FINOLA
    <https://arxiv.org/abs/2305.16319>`_; it is not linear, so no propagator carries it.

    Args:
        z: Features (..., C), channels last.
        generator: A, (C, C), per unit of displacement.
        displacement: d, of either sign; a tensor is broadcast against ``z``.
        sub_steps: Number of Euler steps, z + d / n A z^ each.

    Returns:
        (..., C).
    """
    for _ in range(sub_steps):
        z = torch.addcmul(
            z, torch.as_tensor(displacement / sub_steps).to(z), F.layer_norm(z, z.shape[-1:]) @ generator.mT
        )
    return z


def commutator(A: Tensor, B: Tensor) -> Tensor:
    """AB - BA, (..., C, C): zero if and only if horizontal and vertical steps commute.

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
        S, (..., C, C). S = I is the isotropic equation; it needs complex eigenvalues, for example A = iB.

    Raises:
        TypeError, ValueError: If the arguments are not square matrices of one size.
        ValueError: If B is numerically singular: then S does not exist.
    """
    _check_square(A=A, B=B)
    if bool((torch.linalg.matrix_rank(B) < B.shape[-1]).any()):
        raise ValueError('B is singular to rounding, so S = -A^2 B^-2 does not exist (are the generators still zero?)')
    return -torch.linalg.solve(B, torch.linalg.solve(B, A @ A, left=False), left=False)


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

    D is block-diagonal with rotation-and-scaling blocks, so eigenvalues come in complex pairs r +- is. With real
    eigenvalues S = -A^2 B^-2 would have negative eigenvalues only, a wave equation, while the isotropic S = I is
    A = iB. The last block of an odd number of channels is 1 x 1 and real, so S = I needs an even number.

    The Cayley transform excludes every Q with an eigenvalue -1 without loss of generality: flipping the signs of some
    basis vectors gives a Q that is not excluded, and another D.

    All generators are initialized to zero. Eigenvalues learn from the first step on, the basis from the second.

    Args:
        channels: C.
        num_generators: How many share the basis: usually 2, the first along x, the second along y.

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

        Multiplied in float64, because in TF32 or half precision they would not commute.
        """
        basis = orthogonal_basis(self.skew)
        blocks = block_diagonal(self.real.double(), self.imag.double())
        return (basis @ blocks @ basis.mT).to(self.skew.dtype).unbind()
