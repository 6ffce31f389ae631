"""How well features obey the heat equation z_x = A z, z_y = B z: least-squares fits, and what checkpoints learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...checkpoint import select_prefix
from ...heat import CommutingGenerators, commutator
from .features import Moments

Features = Tensor | Iterable[Tensor]


class GeneratorFit(NamedTuple):
    """What :func:`fit_generators` returns."""

    A: Tensor
    B: Tensor
    r2_x: float
    r2_y: float
    copy_r2_x: float
    copy_r2_y: float


def fit_generators(features: Features, displacement: int = 1, held_out: Features | None = None) -> GeneratorFit:
    """Fit generators to feature maps by least squares, and measure how well they predict the features.

    Along each axis the propagator P minimizes ``|z(x + d) - P z(x)|^2`` over all positions, and the generator is that
    of its Euler step, P = I + d A. As in the method there is no intercept. Batches are visited once and only C x C
    sums are kept, in float64. Directions in which features never vary are copied.

    R^2 is 1 - residual / total, each summed over all channels and positions, of the *value* z(x + d); the total is
    taken around the mean of each channel. 1 is exact, 0 is no better than the mean, and features that do not vary
    have none (nan). Smooth features reach a high R^2 under any law, so compare with copying z(x).

    Args:
        features: Maps (N, C, H, W): one tensor, or any iterable of batches.
        displacement: d in cells; the generators are per cell.
        held_out: Batches as ``features`` on which R^2 is taken. Defaults to ``features``.

    Returns:
        A, B, (C, C) in float64; R^2 along x and y; R^2 of copying, z(x + d) = z(x), along x and y.

    Raises:
        ValueError: If the displacement is not a positive integer, or features have another shape, hold no pair of
            positions, or are not finite.
    """
    if isinstance(displacement, bool) or not isinstance(displacement, int) or displacement < 1:
        raise ValueError(f'displacement={displacement!r} must be a whole number of cells, 1 or more')

    def pairs(z: Tensor) -> list[tuple[Tensor, Tensor]]:
        d = displacement
        return [(z[..., :-d], z[..., d:]), (z[..., :-d, :], z[..., d:, :])]

    fitted = _sum_moments(features, pairs, displacement + 1, 'features')
    tested = fitted if held_out is None else _sum_moments(held_out, pairs, displacement + 1, 'held_out')
    identity = torch.eye(len(fitted[0].vu)).to(fitted[0].vu)
    # Fitting P - I copies the null space of the features.
    steps = [_least_squares(moments, moments.vu - moments.uu[:-1]) for moments in fitted]
    r2 = [moments.r2(identity + step) for moments, step in zip(tested, steps, strict=True)]
    return GeneratorFit(*(step / displacement for step in steps), *r2, *(moments.r2(identity) for moments in tested))


def derivative_relation(features: Features, held_out: Features | None = None) -> tuple[Tensor, float]:
    """Fit the linear map D with z_x = D z_y, which is A B^-1 where z_x = A z and z_y = B z.

    Derivatives are central differences, (z(x + 1) - z(x - 1)) / 2. Forward differences along x and along y share the
    point z(x, y), which alone gives white noise an R^2 of 0.25.

    Args:
        features: As of :func:`fit_generators`, 3 cells a side or more.
        held_out: Batches as ``features`` on which R^2 is taken. Defaults to ``features``.

    Returns:
        D, (C, C) in float64, fitted without an intercept; R^2 of z_x, defined as in :func:`fit_generators`.

    Raises:
        ValueError: As :func:`fit_generators`.
    """

    def pairs(z: Tensor) -> list[tuple[Tensor, Tensor]]:
        z_x = (z[..., 1:-1, 2:] - z[..., 1:-1, :-2]) / 2
        z_y = (z[..., 2:, 1:-1] - z[..., :-2, 1:-1]) / 2
        return [(z_y, z_x)]

    (fitted,) = _sum_moments(features, pairs, 3, 'features')
    (tested,) = [fitted] if held_out is None else _sum_moments(held_out, pairs, 3, 'held_out')
    relation = _least_squares(fitted, fitted.vu)
    return relation, tested.r2(relation)


def effective_rank(features: Features) -> float:
    """How many directions features use: exp of the entropy of the covariance's normalized eigenvalues.

    Between 1, one direction carries all variance, and C, all carry the same. Source: Roy and Vetterli, `The effective
    rank <https://ieeexplore.ieee.org/document/7098875>`_, on the eigenvalues of the covariance.

    Args:
        features: As of :func:`fit_generators`.

    Returns:
        The effective rank; nan where features do not vary.

    Raises:
        ValueError: As :func:`fit_generators`.
    """
    (moments,) = _sum_moments(features, lambda z: [(z, z)], 1, 'features')
    _, covariance = moments.mean_and_covariance()
    spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


def measure(features: Sequence[Tensor], held_out: Sequence[Tensor]) -> dict:
    """Fit on ``features`` and evaluate on ``held_out``.

    Args:
        features: Batches of maps (N, C, H, W); the smaller side has an even number of cells.
        held_out: Batches like them.

    Returns:
        R^2 of the value, ``x`` and ``y``, and of copying, ``copy_x`` and ``copy_y``, under ``one_cell`` and
        ``quarter``; R^2 of the derivative relation; the effective rank. None where features do not vary.
    """

    def value(displacement: int) -> dict:
        r2 = fit_generators(features, displacement, held_out)[2:]
        return {key: _finite(number) for key, number in zip(('x', 'y', 'copy_x', 'copy_y'), r2, strict=True)}

    return dict(
        one_cell=value(1),
        quarter=value(min(features[0].shape[2:]) // 2),
        derivative=_finite(derivative_relation(features, held_out)[1]),
        effective_rank=_finite(effective_rank(held_out)),
    )


def shuffle_positions(features: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    """Shuffle the cells of feature maps (N, C, H, W), each image in its own random order."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = []
    for batch in features:
        cells = batch.flatten(2)  # (N, C, HW)
        order = torch.rand(len(cells), 1, cells.shape[2], generator=generator).argsort(dim=2).to(cells.device)
        shuffled.append(cells.gather(2, order.expand_as(cells)).view_as(batch))
    return shuffled


def learned_generators(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The generators in the weights of a whole model.

    Returns:
        ``A`` (along x) and ``B`` (along y), (..., C, C), several where each direction has its own; an empty dict for
        a model without generators.
    """
    neck = {key: value.float() for key, value in state_dict.items() if key.startswith('neck.')}
    for key in neck:
        if key.endswith('.generator_x') and (partner := key[:-1] + 'y') in neck:
            return {'A': neck[key], 'B': neck[partner]}
        if key.endswith('.skew'):  # generators that share a basis: those along x, then those along y
            weights = select_prefix(neck, key.removesuffix('skew'), 'the checkpoint')
            module = CommutingGenerators(len(weights['skew']), len(weights['real']))
            module.load_state_dict(weights)
            return dict(zip('AB', torch.stack(module()).detach().chunk(2), strict=True))
    return {}


def describe_generators(generators: dict[str, Tensor]) -> dict:
    """Eigenvalues as [real, imaginary] pairs, per quarter, and ||AB - BA|| / ||AB||; an empty dict for no generators.

    Args:
        generators: As :func:`learned_generators` returns them.
    """
    if not generators:
        return {}
    eigenvalues = {
        name: torch.view_as_real(torch.linalg.eigvals(generator.double())).flatten(0, -2).tolist()
        for name, generator in generators.items()
    }
    A, B = generators['A'], generators['B']
    return dict(eigenvalues=eigenvalues, commutator=_finite(float(commutator(A, B).norm() / (A @ B).norm())))


def _sum_moments(features: Features, pairs: Callable, smallest: int, name: str) -> list[Moments]:
    """Sum the moments of each pair of maps that ``pairs`` returns for a batch.

    Raises:
        ValueError: If ``features`` are not finite maps (N, C, H, W) of at least ``smallest`` cells a side.
    """
    if isinstance(features, Tensor):
        features = features.split(64) if features.ndim == 4 else [features]
    moments = []
    for batch in features:
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            kind = f'shape {tuple(batch.shape)}' if isinstance(batch, Tensor) else f'type {type(batch).__name__}'
            raise ValueError(f'{name} must hold maps (N, C, H, W), not a value of {kind}')
        if min(batch.shape[2:]) < smallest:
            raise ValueError(f'{name}: {smallest} cells a side are needed, the maps have {tuple(batch.shape[2:])}')
        if moments and len(moments[0].vu) != batch.shape[1]:
            raise ValueError(f'{name}: one batch has {len(moments[0].vu)} channels, another {batch.shape[1]}')
        batch_pairs = pairs(batch.detach().double())
        moments = moments or [Moments() for _ in batch_pairs]
        for each, (u, v) in zip(moments, batch_pairs, strict=True):
            each.add(u, v)
    if not moments:
        raise ValueError(f'{name} holds no batch (has the iterator been used up?)')
    for each in moments:
        if not torch.isfinite(each.vv + each.uu.sum()):
            raise ValueError(f'{name} holds numbers that are not finite')
        if each.count == 0:
            raise ValueError(f'{name} holds no positions')
    return moments


def _least_squares(moments: Moments, products: Tensor) -> Tensor:
    """The map from u to w of least norm, given the sum of w (u, 1)^T."""
    return products[:, :-1] @ torch.linalg.pinv(moments.uu[:-1, :-1], hermitian=True)


def _finite(number: float) -> float | None:
    """None for nan and infinity, which JSON lacks."""
    return number if math.isfinite(number) else None
