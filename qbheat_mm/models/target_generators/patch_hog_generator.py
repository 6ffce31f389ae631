"""HOG targets, as in MaskFeat, for images and patches of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from mmpretrain.models.selfsup import HOGGenerator
from mmpretrain.registry import MODELS
from pydantic import Field
from torch import Tensor

from ...arguments import Size, check_arguments

Window = Annotated[int, Field(gt=0, le=2**10)]  # the kernel has so many pixels squared


@MODELS.register_module()
class PatchHOGGenerator(HOGGenerator):
    """Histograms of oriented gradients, per patch of the image; the target of `MaskFeat
    <https://arxiv.org/abs/2112.09133>`_.

    The numbers are those of mmpretrain's ``HOGGenerator`` times the square root of ``nbins``, which gives them the mean
    square 1 of normalized pixels. That class arranges them in 14 x 14 positions; here a position is a patch of
    ``patch_size`` pixels. It takes a twelfth of that class's time on a CPU, because no tensor has an axis of bins times
    pixels, and because a few images at a time stay in the cache.

    Args:
        patch_size: Side of a patch in pixels.
        nbins: Orientations of a histogram, over half a turn.
        pool: Side in pixels of the cell that has a histogram of its own, for each color.
        gaussian_window: Side in pixels of the windows that weigh gradients, tiled over the image.

    Raises:
        ValueError: If patches do not divide into cells.
    """

    @check_arguments
    def __init__(self, patch_size: Size = 16, nbins: Size = 9, pool: Size = 8, gaussian_window: Window = 16) -> None:
        if patch_size % pool:
            raise ValueError(f'PatchHOGGenerator: patch_size={patch_size} is not a multiple of pool={pool}.')
        super().__init__(nbins, pool, gaussian_window)
        self.patch_size = patch_size

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> HOG (N, L, 3 nbins (patch_size / pool)^2), in float32.

        Raises:
            ValueError: If the size is not a multiple of the patches' and the windows'.
        """
        for unit in ('patch_size', 'gaussian_window'):
            if any(side % getattr(self, unit) for side in images.shape[2:]):
                size = ' x '.join(str(side) for side in images.shape[:1:-1])
                raise ValueError(f'{size} px do not divide by {unit}={getattr(self, unit)} of PatchHOGGenerator.')
        with torch.autocast(images.device.type, enabled=False):
            chunks = images.float().split(8 if images.device.type == 'cpu' else len(images))
            hog = torch.cat([self._histograms(chunk) for chunk in chunks])
        cells = self.patch_size // self.pool
        return F.unfold(hog.flatten(1, 2), cells, stride=cells).mT * math.sqrt(self.nbins)

    def _histograms(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, nbins, H / pool, W / pool), of length 1 over the bins."""
        rows, columns = (side // self.pool for side in images.shape[2:])
        gradient_x, gradient_y = _sobel(images)
        repeats = [side // self.gaussian_window for side in images.shape[2:]]
        magnitude = torch.hypot(gradient_x, gradient_y).mul_(self.gaussian_kernel.repeat(repeats))
        # Half a turn is nbins bins, so angles, from minus half a turn to half a turn inclusive, give 2 nbins + 1.
        bins = 2 * self.nbins + 1
        angle = torch.atan2(gradient_x, gradient_y).div_(math.pi).mul_(self.nbins).floor_().add_(self.nbins)
        row, column = (torch.arange(side, device=images.device) // self.pool for side in images.shape[2:])
        index = angle.add_((row[:, None] * columns + column) * bins).long()
        histograms = magnitude.new_zeros(*images.shape[:2], rows * columns * bins)
        histograms.scatter_add_(2, index.flatten(2), magnitude.flatten(2))
        histograms = histograms.unflatten(2, (rows, columns, bins))
        # Opposite directions have one orientation: bin b is that of b + nbins and b + 2 nbins.
        orientations = histograms[..., :-1].unflatten(-1, (2, self.nbins)).sum(-2)
        orientations = orientations + F.pad(histograms[..., -1:], (0, self.nbins - 1))
        return F.normalize(orientations, dim=-1).permute(0, 1, 4, 2, 3)

    def draw(self, hog: Tensor, image_size: Sequence[int]) -> Tensor:
        """Draw HOG as MaskFeat does: strokes along the orientations, as bright as they are strong.

        Args:
            hog: (N, L, V), of :meth:`forward` or predicted.
            image_size: Height and width (H, W) in pixels.

        Returns:
            (N, 3, H, W), gray, of 0 to 255.
        """
        self.h, self.w = image_size  # where generate_hog_image looks for them
        cells = self.patch_size // self.pool
        map_size = [side // self.pool for side in image_size]
        maps = F.fold(hog.mT, map_size, cells, stride=cells).unflatten(1, (3, self.nbins)).clamp_min(0)
        drawings = [torch.from_numpy(self.generate_hog_image(each[None])) for each in maps]
        return torch.stack(drawings).to(hog)[:, None].expand(-1, 3, -1, -1)


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's derivatives of (N, C, H, W), mirrored at the borders, along x and y with mmpretrain's signs."""
    padded = F.pad(images, (1, 1, 1, 1), mode='reflect')
    smooth_y = (padded[:, :, :-2] + padded[:, :, 2:]).add_(padded[:, :, 1:-1], alpha=2)
    smooth_x = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    return smooth_y[..., :-2] - smooth_y[..., 2:], smooth_x[:, :, :-2] - smooth_x[:, :, 2:]
