"""Random matrices, and feature maps that obey the heat equation exactly."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from qbheat_mm.heat import block_diagonal, orthogonal_basis, propagator

often = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 7)
schemes = st.sampled_from(['euler', 1, 2, 5, 'exp'])


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def matrix(size: int, seed: int, norm: float = 1.5) -> Tensor:
    matrix = randn(size, size, seed=seed)
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2)


def commuting_pair(size: int, seed: int) -> list[Tensor]:
    """A, B with A B = B A, eigenvalues between 0.3 and 0.8 in magnitude, real and complex, in a skewed basis."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(2):
        radius = rng.uniform(0.3, 0.8, (size + 1) // 2)
        angle = rng.uniform(-np.pi, np.pi, size // 2)
        real = torch.tensor(radius * np.append(np.cos(angle), 1)[: len(radius)])
        blocks.append(block_diagonal(real, torch.tensor(radius[: size // 2] * np.sin(angle))))
    basis = orthogonal_basis(randn(size, size, seed=seed)) + 0.1 * matrix(size, seed + 1, norm=1)
    return [basis @ block @ torch.linalg.inv(basis) for block in blocks]


def fields(
    A: Tensor, B: Tensor, scheme='exp', displacement: int = 1, cells: int = 4, count: int | None = None, seed: int = 0
) -> Tensor:
    """Maps (N, C, H, W) with z(x + d) = P_x z(x) and z(y + d) = P_y z(y) exactly, from random corners of d x d."""
    size, d = len(A), displacement
    z = randn(count or size, d, d, size, seed=seed)
    for generator, dim in ((A, 2), (B, 1)):
        steps = [z]
        for _ in range(cells - 1):
            steps.append(steps[-1] @ propagator(generator, d, scheme).mT)
        z = torch.cat(steps, dim=dim)
    return z.permute(0, 3, 1, 2)
