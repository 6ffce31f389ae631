"""From the features of the visible quarter to those of the whole picture, by the heat equation's first-order split."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...heat import propagator


@MODELS.register_module()
class HeatNeck(BaseModule):
    """Extrapolate features linearly, one block away in x, in y, and in both: z(x + dx, y + dy) = P_y P_x z(x, y).

    P_x and P_y come from two learned C x C generators, z_x = A z and z_y = B z; the first-order scheme of the paper is
    P_x = I + dx A, P_y = I + dy B with dx, dy in {-1, 0, 1} in units of the block. The x step comes first, which
    matters as long as A and B do not commute. Every masked cell is reached from the visible cell exactly one block
    away, wherever the block lies.

    A = B = 0 at initialisation: training starts from copies of the visible features (our choice).

    Args:
        in_channels: Channels C of the features.
        scheme: ``'euler'``, see :func:`qbheat_mm.heat.propagator`.
    """

    def __init__(self, in_channels: int, scheme: str | int = 'euler', init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.scheme = scheme
        self.generator_x = nn.Parameter(torch.zeros(in_channels, in_channels))
        self.generator_y = nn.Parameter(torch.zeros(in_channels, in_channels))

    def generators(self) -> tuple[Tensor, Tensor]:
        """A and B, each (C, C), per block of displacement."""
        return self.generator_x, self.generator_y

    def forward(self, visible: Tensor, origin: Tensor) -> Tensor:
        """Features of the visible block to features of the whole picture.

        Args:
            visible: (N, C, h, w), the features of the visible block.
            origin: (N, 2), row and column of the block's top left cell in the whole map.

        Returns:
            (N, C, 2h, 2w) in float32, in channels-last memory.
        """
        with torch.autocast(visible.device.type, enabled=False):
            steps_x, steps_y = (
                torch.stack([propagator(generator, step, self.scheme) for step in (1, -1)])
                for generator in (each.float() for each in self.generators())
            )
            features = visible.float().permute(0, 2, 3, 1)
            features = _extrapolate(features, steps_x, origin[:, 1])
            features = _extrapolate(features.transpose(1, 2), steps_y, origin[:, 0]).transpose(1, 2)
            return features.permute(0, 3, 1, 2)


def _extrapolate(block: Tensor, steps: Tensor, start: Tensor) -> Tensor:
    """Double the third dimension, taking each new cell from the block's cell exactly one block away.

    Args:
        block: (N, h, w, C), which covers the cells ``start`` to ``start + w`` of the doubled dimension.
        steps: (2, C, C), the propagators one block forward and one block back.
        start: (N,), between 0 and w.

    Returns:
        (N, h, 2w, C).
    """
    width, channels = block.shape[2:]
    # Three candidates a cell: as it is, moved forward, moved back; one matrix product for all positions.
    moved = (block @ steps.flatten(0, 1).mT).unflatten(-1, (2, channels))
    candidates = torch.cat([block, moved[..., 0, :], moved[..., 1, :]], dim=2)
    offset = torch.arange(2 * width, device=block.device) - start[:, None]  # (N, 2w), from -w to 2w - 1
    displacement = offset.div(width, rounding_mode='floor')  # -1, 0 or 1 blocks
    index = displacement.remainder(3) * width + offset.remainder(width)
    return candidates.gather(2, index[:, None, :, None].expand(-1, block.shape[1], -1, channels))
