"""Fixed sine-cosine position embedding, computed on the device of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sincos_position_embedding(map_size: Sequence[int], embed_dims: int, device: torch.device) -> Tensor:
    """MAE's 2D position embedding, the numbers of mmpretrain's ``build_2d_sincos_position_embedding``.

    mmpretrain builds it on the CPU; copying it to a GPU in every step would make the host wait for the device.

    Args:
        map_size: Height and width (H, W) of the map in cells.
        embed_dims: D, a multiple of 4.
        device: Where to compute it.

    Returns:
        (1, H W, D), rows outermost.
    """
    quarter = embed_dims // 4
    frequencies = 1e4 ** -(torch.arange(quarter, device=device) / quarter)
    rows, columns = (torch.arange(size, device=device)[:, None] * frequencies for size in map_size)
    rows = rows[:, None].expand(-1, len(columns), -1)  # (H, W, D / 4)
    columns = columns[None].expand_as(rows)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1).flatten(0, 1)[None]
