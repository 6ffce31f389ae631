"""Quarters and patches of images, gathered without a loop over samples and without a host synchronization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def crop_quarter(images: Tensor, origin: Tensor, patch_size: int) -> Tensor:
    """Crop the visible quarter of each image.

    Args:
        images: (N, C, H, W).
        origin: (N, 2), row and column of the quarter's top left cell.
        patch_size: Side of a cell in pixels.

    Returns:
        (N, C, H / 2, W / 2).
    """
    count, channels, height, width = images.shape
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1, 1)
    rows = origin[:, 0, None] * patch_size + torch.arange(height // 2, device=images.device)
    columns = origin[:, 1, None] + torch.arange(width // 2 // patch_size, device=images.device)
    return _gather_runs(images, planes, rows[:, None, :, None], columns[:, None, None, :], patch_size).flatten(3)


def masked_cells(origin: Tensor, map_size: Sequence[int]) -> Tensor:
    """The cells outside the visible quarter.

    Args:
        origin: (N, 2), row and column of the quarter's top left cell.
        map_size: Height and width (H, W) of the whole map in cells.

    Returns:
        (N, 3 H W / 4), indices into the flattened map in ascending order.
    """
    inside = []
    for start, size in zip(origin.unbind(1), map_size):
        offset = torch.arange(size, device=origin.device) - start[:, None]
        inside.append((offset >= 0) & (offset < size // 2))
    mask = ~(inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)
    # Three quarters are masked wherever the block lies: the host knows the count without reading the mask.
    return mask.byte().argsort(dim=1, descending=True, stable=True)[:, : mask.shape[1] * 3 // 4]


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """The positions ``ids`` (N, M) of each sequence in ``x`` (N, L, D) -> (N, M, D)."""
    start = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (start + ids).flatten()).unflatten(0, ids.shape)


def gather_patches(images: Tensor, ids: Tensor, patch_size: int) -> Tensor:
    """The square patches at ``ids`` (N, M) of images (N, C, H, W) -> (N, M, C patch_size^2), channel by channel."""
    count, channels, _, width = images.shape
    planes = torch.arange(count * channels, device=images.device).view(count, 1, channels, 1)
    ids = ids[..., None, None]
    rows = ids // (width // patch_size) * patch_size + torch.arange(patch_size, device=images.device)
    return _gather_runs(images, planes, rows, ids % (width // patch_size), patch_size).flatten(2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) -> (N, L, C patch_size^2), channel by channel; MAE's order is pixel by pixel."""
    return F.unfold(images, patch_size, stride=patch_size).mT


def unpatchify(patches: Tensor, image_size: Sequence[int], patch_size: int) -> Tensor:
    """Inverse of :func:`patchify`: (N, L, C patch_size^2) -> (N, C, H, W) of ``image_size`` (H, W)."""
    return F.fold(patches.mT, tuple(image_size), patch_size, stride=patch_size)


def normalize_patches(patches: Tensor) -> Tensor:
    """MAE's normalization of patches (..., D): by the root of the unbiased variance + 1e-6.

    Written as a layer norm, whose variance is the biased one: on a CPU it takes a twentieth of ``Tensor.var``'s time.
    """
    count = patches.shape[-1]
    shrink = (count - 1) / count
    weight = patches.new_full((count,), shrink**0.5)
    return F.layer_norm(patches, (count,), weight, eps=1e-6 * shrink)


def _gather_runs(images: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, length: int) -> Tensor:
    """Runs of pixels, which are cheaper to gather than pixels.

    Args:
        images: (N, C, H, W).
        planes: Which of the N C planes; broadcast against the next two.
        rows: Which row of it.
        columns: Which run of the row, counted in runs.
        length: Pixels of a run, a divisor of W.

    Returns:
        (..., length).
    """
    height, width = images.shape[-2:]
    runs = (planes * height + rows) * (width // length) + columns
    return images.reshape(-1, length).index_select(0, runs.flatten()).unflatten(0, runs.shape)


def check_feature_map(backbone: nn.Module, images: Tensor, features: Tensor, channels: int, stride: int) -> None:
    """Refuse a backbone's output for ``images`` (N, 3, H, W) that is no map (N, channels, H / stride, W / stride).

    Raises:
        ValueError: With what came out, and the options that change it.
    """
    name, (height, width) = type(backbone).__name__, images.shape[2:]
    if not isinstance(features, Tensor) or features.ndim != 4:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f'{name} gives {found} for a quarter; QBHeat needs a feature map (N, C, h, w). Look for an option like '
            "out_type='featmap' (transformers) or gap_before_final_norm=False (ConvNeXt)."
        )
    expected = (channels, height // stride, width // stride)
    if tuple(features.shape[1:]) != expected:
        found, wanted = (f'{c} channels of {w} x {h} features' for c, h, w in (features.shape[1:], expected))
        raise ValueError(
            f'{name} gives {found} for a quarter of {width} x {height} px, but neck.in_channels={channels} and '
            f'patch_size={stride} want {wanted}: set these to the channels and stride of its last output, or choose '
            'another output of the backbone (arch, out_indices, output_stride).'
        )
