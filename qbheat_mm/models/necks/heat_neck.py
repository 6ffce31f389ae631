"""From the features of the visible quarter to those of the whole image, by the heat equation's first-order split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...arguments import InitConfig, Size, check_arguments
from ...heat import CommutingGenerators, check_scheme, commutator, norm_linear_step, propagator

Step = Callable[[Tensor, Tensor], Tensor]


@MODELS.register_module()
class HeatNeck(BaseModule):
    """Extrapolate features linearly, one block away in x, in y, and in both: z(x + dx, y + dy) = P_y P_x z(x, y).

    P_x and P_y come from learned C x C generators, z_x = A z and z_y = B z; the first-order scheme of the paper is
    P_x = I + dx A, P_y = I + dy B with dx, dy in {-1, 0, 1} in units of the block. The x step comes first, which
    matters as long as A and B do not commute. Every masked cell is reached from the visible cell exactly one block
    away, wherever the block lies.

    A = B = 0 at initialization: training starts from copies of the visible features (our choice).

    Args:
        in_channels: Channels C of the features.
        scheme: ``'euler'``, a number of Euler sub-steps, or ``'exp'``, see :func:`qbheat_mm.heat.propagator`; or
            ``'none'``, the control without an equation: features are copied, nothing is learned. The normalized law
            has no ``'exp'``.
        direction: ``'signed'``, one A and one B, where left and up are negative displacements; or ``'separate'``, one
            matrix each for right, left, down and up.
        commute: ``'none'``; ``'penalty'``, which adds ||AB - BA||_F^2 to the losses as ``loss_commute``; or
            ``'shared_basis'``, generators that commute by construction. Commuting generators do not make steps of the
            normalized law commute, so there it is ``'none'``.
        law: ``'linear'``, the paper's z_x = A z, z_y = B z; or ``'norm_linear'``, FINOLA's z_x = A z^, z_y = B z^ with
            z^ normalized over the channels, see :func:`qbheat_mm.heat.norm_linear_step`.
    """

    @check_arguments
    def __init__(
        self,
        in_channels: Size,
        scheme: str | int = 'euler',
        direction: Literal['signed', 'separate'] = 'signed',
        commute: Literal['none', 'penalty', 'shared_basis'] = 'none',
        law: Literal['linear', 'norm_linear'] = 'linear',
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if scheme == 'none' and (direction, commute) != ('signed', 'none'):
            raise ValueError("HeatNeck: scheme='none' learns nothing, so it takes neither direction nor commute.")
        if law == 'norm_linear' and (scheme in ('exp', 'none') or commute != 'none'):
            raise ValueError("HeatNeck: law='norm_linear' takes Euler steps and commute='none' alone.")
        self.in_channels = in_channels
        self.law = law
        self.scheme = scheme if scheme == 'none' else check_scheme(scheme)
        self.direction = direction
        self.commute = commute
        per_axis = 1 if direction == 'signed' else 2
        if commute == 'shared_basis':
            self.commuting = CommutingGenerators(in_channels, 2 * per_axis)
        elif scheme != 'none':
            self.generator_x = nn.Parameter(torch.zeros(per_axis, in_channels, in_channels))
            self.generator_y = nn.Parameter(torch.zeros(per_axis, in_channels, in_channels))

    def generators(self) -> tuple[Tensor, Tensor] | None:
        """A and B, each (k, C, C) per block of displacement; None where there are none.

        k is 1 for ``signed``, and 2 for ``separate``: right and left, down and up.
        """
        if self.scheme == 'none':
            return None
        if self.commute == 'shared_basis':
            return torch.stack(self.commuting()).chunk(2)
        return self.generator_x, self.generator_y

    def propagators(self) -> tuple[Tensor, Tensor]:
        """P_x and P_y of the linear law, each (2, C, C) in float32: one block forward, one block back."""
        generators = self.generators()
        back = -1.0 if self.direction == 'signed' else 1.0  # separate matrices for left and up have their own sign
        displacement = torch.tensor([1.0, back], device=generators[0].device)
        return propagator(torch.stack(generators).float(), displacement, self.scheme).unbind()

    def forward(self, latent: Tensor, origin: Tensor) -> Tensor:
        """Features of the visible block to features of the whole image.

        Args:
            latent: (N, C, h, w), the features of the visible block.
            origin: (N, 2), row and column of the block's top left cell in the whole map.

        Returns:
            (N, C, 2h, 2w) in float32, in channels-last memory.
        """
        with torch.autocast(latent.device.type, enabled=False):
            step_x, step_y = self._steps()
            features = latent.float().permute(0, 2, 3, 1).contiguous()  # (N, h, w, C)
            features = _extrapolate(features, step_x, origin[:, 1], dim=2)
            features = _extrapolate(features, step_y, origin[:, 0], dim=1)
            return _Roll.apply(features, origin).permute(0, 3, 1, 2)

    def _steps(self) -> list[Step]:
        """What carries features one block along x, and along y."""
        if self.scheme == 'none':
            return [lambda z, ahead: z] * 2
        if self.law == 'norm_linear':
            sub_steps = 1 if self.scheme == 'euler' else self.scheme
            return [partial(_step_norm_linear, generator.float(), sub_steps) for generator in self.generators()]
        if self.scheme == 'euler' and self.direction == 'signed':  # z + d A z: one product for both directions
            return [partial(_add_difference, generator[0].float()) for generator in self.generators()]
        return [partial(_propagate, *propagators) for propagators in self.propagators()]

    def losses(self) -> dict[str, Tensor]:
        """What the neck adds to the losses by name: ``loss_commute`` with ``commute='penalty'``, else nothing."""
        if self.commute != 'penalty':
            return {}
        a, b = (each.float() for each in self.generators())
        with torch.autocast(a.device.type, enabled=False):
            return dict(loss_commute=commutator(a[:, None], b[None]).square().sum())


def _add_difference(generator: Tensor, z: Tensor, ahead: Tensor) -> Tensor:
    """Features (N, h, w, C) by I + d A, d = 1 where ``ahead`` (N, h or 1, w or 1, 1), else -1."""
    return torch.addcmul(z, torch.where(ahead, 1.0, -1.0), z @ generator.mT)


def _step_norm_linear(generator: Tensor, sub_steps: int, z: Tensor, ahead: Tensor) -> Tensor:
    """Features (N, h, w, C) by the normalized law; ``generator`` (k, C, C) as of :meth:`HeatNeck.generators`."""
    if len(generator) == 1:
        return norm_linear_step(z, generator[0], torch.where(ahead, 1.0, -1.0), sub_steps)
    return torch.where(ahead, *(norm_linear_step(z, each, 1.0, sub_steps) for each in generator))


def _propagate(forward: Tensor, back: Tensor, z: Tensor, ahead: Tensor) -> Tensor:
    """Features (N, h, w, C) by the propagator of each cell's direction."""
    return torch.where(ahead, z @ forward.mT, z @ back.mT)


def _extrapolate(block: Tensor, step: Step, start: Tensor, dim: int) -> Tensor:
    """Append, along one dimension, to the cells of the visible block what they predict one block away.

    The block covers the cells ``start`` to ``start + w`` of 2w, so each of its w cells predicts exactly one masked
    cell: the first ``w - start`` of them the cell one block ahead, the others the one behind. Modulo 2w these are the
    same cell: appended to the block, the predictions close a ring, which :class:`_Roll` turns by ``start``.

    Args:
        block: (N, h, w, C).
        step: Takes features and whether each goes ahead or back, gives the features one block away.
        start: (N,), between 0 and w.
        dim: 2 for w, along x, or 1 for h, along y.

    Returns:
        (N, h, 2w, C) for x, or (N, 2h, w, C): the doubled dimension closed to a ring, which begins at ``start``.
    """
    cells = torch.arange(block.shape[dim], device=block.device)
    ahead = (cells < len(cells) - start[:, None]).unflatten(1, (-1, 1, 1) if dim == 1 else (1, -1, 1))
    return torch.cat([block, step(block, ahead)], dim)


class _Roll(torch.autograd.Function):
    """``torch.roll`` with a shift of its own for each sample; the gradient is rolled back.

    Autograd's gradient of indexing would add into the map cell by cell, as if a cell could be read twice.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, shift: Tensor) -> Tensor:
        """(N, H, W, C), (N, 2) cells down and right -> (N, H, W, C)."""
        ctx.shift = shift
        count, height, width = maps.shape[:3]
        sample, row, column = (torch.arange(size, device=maps.device) for size in (count, height, width))
        row = (row - shift[:, :1]) % height  # (N, H)
        column = (column - shift[:, 1:]) % width  # (N, W)
        index = ((sample * height)[:, None, None] + row[:, :, None]) * width + column[:, None, :]
        return maps.flatten(0, 2).index_select(0, index.flatten()).view_as(maps)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient, rolled back."""
        return _Roll.apply(gradient, -ctx.shift), None
