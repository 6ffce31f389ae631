"""Which quarter of a image stays visible."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from ...arguments import check_arguments

CORNERS = ('top_left', 'top_right', 'bottom_left', 'bottom_right')


@TRANSFORMS.register_module()
class QuarterMask(BaseTransform):
    """Choose the block, a quarter of the image's area, that stays visible.

    The block lies on the grid of the backbone's feature cells, so that it is encoded to whole features. The image
    itself is not touched: the algorithm cuts the block out, on the device.

    **Required Keys:** none.

    **Added Keys:**

    - visible_origin (tuple[int, int]): Row and column, in feature cells, of the block's top left cell. Pass it on with
      ``PackInputs(meta_keys=('visible_origin', ...))``.

    Args:
        input_size: Side of the square image in pixels.
        stride: Pixels per feature cell: the backbone's output stride.
        visible: ``'corner'``, one of the four corners with equal chance per sample, as in the paper; one of them by
            name (``'top_left'``, ...); ``'center'``; or ``'random'``, any offset in whole cells.

    Raises:
        ValueError: If the quarters are not whole cells, or ``visible`` is unknown.
    """

    @check_arguments('input_size', 'stride')
    def __init__(self, input_size: int, stride: int = 16, visible: str = 'corner') -> None:
        if input_size % (2 * stride):
            raise ValueError(
                f'QuarterMask: input_size={input_size} does not divide into quarters of whole feature cells '
                f'of stride={stride} px; {whole_quarter_sizes(input_size, stride)} would do.'
            )
        if visible not in (*CORNERS, 'corner', 'center', 'random'):
            raise ValueError(f"QuarterMask: visible='{visible}' is not 'corner', {CORNERS}, 'center' or 'random'.")
        self.input_size = input_size
        self.stride = stride
        self.visible = visible
        self.block = input_size // stride // 2  # side of the visible block in cells
        if visible == 'center' and self.block % 2:
            raise ValueError(
                f"QuarterMask: visible='center' leaves a margin of {self.block / 2} cells at input_size={input_size}; "
                f'{whole_quarter_sizes(input_size, 2 * stride)} would do.'
            )

    def transform(self, results: dict) -> dict:
        """Add the block's place to ``results``."""
        results['visible_origin'] = self._draw()
        return results

    def _draw(self) -> tuple[int, int]:
        if self.visible == 'center':
            return self.block // 2, self.block // 2
        if self.visible == 'random':
            row, column = np.random.randint(self.block + 1, size=2)
            return int(row), int(column)
        corner = np.random.randint(4) if self.visible == 'corner' else CORNERS.index(self.visible)
        return corner // 2 * self.block, corner % 2 * self.block

    def __repr__(self) -> str:
        return f"{type(self).__name__}(input_size={self.input_size}, stride={self.stride}, visible='{self.visible}')"


def whole_quarter_sizes(input_size: int, stride: int) -> str:
    """The nearest sizes below and above whose quarters are whole cells, as text for a message."""
    below = input_size // (2 * stride) * 2 * stride
    return ' or '.join(str(size) for size in (below, below + 2 * stride) if size)
