"""Which quarter of an image stays visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from pydantic import Field
from torch import Tensor

from ...arguments import Size, check_arguments

CORNERS = ('top_left', 'top_right', 'bottom_left', 'bottom_right')
Placement = Literal['top_left', 'top_right', 'bottom_left', 'bottom_right', 'corner', 'center', 'random']
PLACEMENTS = get_args(Placement)


@TRANSFORMS.register_module()
class QuarterMask(BaseTransform):
    """Choose the block, a quarter of the image's area, that stays visible.

    The block lies on the grid of the backbone's feature cells, so that it is encoded to whole features. The image
    itself is not touched: the algorithm crops the block, on the device.

    **Required Keys:**

    - img (np.ndarray): (H, W, C), of which only the size is read; or view (dict) with the size of a crop that is made
      on the device.

    **Added Keys:**

    - visible_origin (tuple[int, int]): Row and column, in feature cells, of the block's top left cell. Pass it on with
      ``PackInputs(meta_keys=('visible_origin', ...))``.

    Args:
        patch_size: Pixels per feature cell: the backbone's output stride.
        visible: ``'corner'``, one of the four corners with equal chance per sample, as in the paper; one of them by
            name (``'top_left'``, ...); ``'center'``; or ``'random'``, any offset in whole cells. Of a list of them, one
            with equal chance per sample.

    Raises:
        ValueError: If an image does not divide into quarters of whole cells.
    """

    @check_arguments
    def __init__(
        self,
        patch_size: Size = 16,
        visible: Placement | Annotated[Sequence[Placement], Field(min_length=1)] = 'corner',
    ) -> None:
        self.patch_size = patch_size
        self.visible = visible
        self._placements = [visible] if isinstance(visible, str) else list(visible)

    def transform(self, results: dict) -> dict:
        """Add the block's place to ``results``."""
        size = results['view']['size'] if 'view' in results else results['img'].shape[:2]
        check_quarters(size, self.patch_size)
        if 'center' in self._placements:
            check_quarters(size, 2 * self.patch_size, "visible='center' wants a margin of whole cells: ")
        row, column = self._draw(*(side // self.patch_size // 2 for side in size))
        results['visible_origin'] = int(row), int(column)
        return results

    def _draw(self, rows: int, columns: int) -> tuple[int, int]:
        """The top left cell of a block of so many rows and columns, in a map of twice as many."""
        few = len(self._placements) == 1  # then nothing is drawn: seeds keep their meaning
        placement = self._placements[0 if few else np.random.randint(len(self._placements))]
        if placement == 'center':
            return rows // 2, columns // 2
        if placement == 'random':
            return np.random.randint(rows + 1), np.random.randint(columns + 1)
        corner = np.random.randint(4) if placement == 'corner' else CORNERS.index(placement)
        return corner // 2 * rows, corner % 2 * columns

    def __repr__(self) -> str:
        return f'{type(self).__name__}(patch_size={self.patch_size}, visible={self.visible!r})'


def check_quarters(size: Sequence[int], patch_size: int, reason: str = '') -> None:
    """Refuse an image whose quarters are not whole cells.

    Raises:
        ValueError: With the nearest sizes that would do.
    """
    for side in size:
        if side % (2 * patch_size):
            below = side // (2 * patch_size) * 2 * patch_size
            fitting = ' or '.join(str(each) for each in (below, below + 2 * patch_size) if each)
            raise ValueError(
                f'{reason}{side} px do not divide into quarters of whole {patch_size}-px cells (patch_size); '
                f'{fitting} px would do.'
            )


def visible_origins(data_samples: Sequence[DataSample], device: torch.device) -> Tensor:
    """What QuarterMask wrote, (N, 2): row and column of each visible block's top left cell.

    Raises:
        KeyError: If a sample lacks it.
    """
    if not all('visible_origin' in sample for sample in data_samples):
        raise KeyError(
            "QBHeat needs `visible_origin`: put QuarterMask into the pipeline and 'visible_origin' into the meta_keys "
            'of PackInputs.'
        )
    origin = torch.tensor([sample.visible_origin for sample in data_samples])
    return origin.to(device, non_blocking=True)  # a blocking copy would wait for the device
