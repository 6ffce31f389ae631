"""Frozen features, whitened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from ...arguments import Size, check_arguments


class WhiteningLayer(nn.Module):
    """A fixed affine map after which features have mean 0 and covariance I; of all of these (ZCA) it changes least.

    Args:
        channels: C of the features.
        eps: Added to every variance, as a share of the largest one.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.has_statistics = False  # known on the host: a look at the buffers would wait for the device in every step
        self.register_buffer('mean', torch.full((channels,), torch.nan))
        self.register_buffer('matrix', torch.eye(channels))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, covariance: Tensor) -> None:
        """Whiten features with this mean (C,) and covariance (C, C) from now on."""
        variances, directions = torch.linalg.eigh(covariance.double())
        scales = (variances.clamp(min=0) + self.eps * variances[-1]).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(directions * scales @ directions.mT)
        self.has_statistics = True

    def set_identity(self) -> None:
        """Change nothing from now on, where what comes out does not matter yet."""
        self.mean.zero_()
        self.matrix.copy_(torch.eye(len(self.mean)))
        self.has_statistics = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.has_statistics = not self.mean.isnan().any()

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C) or (N, C, H, W), whitened.

        Raises:
            RuntimeError: If there are no statistics yet.
        """
        if not self.has_statistics:
            raise RuntimeError(
                "Whitening has no statistics. Add default_hooks=dict(whitening=dict(type='WhiteningHook')) to the "
                'config, which collects them before training, or load a checkpoint that contains them.'
            )
        mean = self.mean.view(-1, *[1] * (features.ndim - 2))
        # Large numbers cancel here, which half precision would leave as noise.
        with torch.autocast(features.device.type, enabled=False):
            return torch.einsum('dc,nc...->nd...', self.matrix, features.to(mean.dtype) - mean)


@MODELS.register_module()
class Whitening(BaseModule):
    """Features of a frozen backbone with mean 0 and, over images and positions, covariance I.

    QB-Heat's features have most of their variance in a handful of directions. What stands in the others a head learns
    slowly, although a linear map could read it as well. Not the paper's.

    The statistics are :class:`~qbheat_mm.engine.hooks.WhiteningHook`'s to set and travel with checkpoints.

    Args:
        in_channels: Channels of the last outputs of what comes before, one number for each of them.
        eps: Added to every variance, as a share of the largest one, so that directions in which features hardly vary
            are not blown up to noise.
    """

    @check_arguments
    def __init__(
        self, in_channels: Annotated[Sequence[Size], Field(min_length=1)], eps: NonNegativeFloat = 1e-5
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WhiteningLayer(channels, eps) for channels in in_channels)

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The last of ``feats``, each (N, C) or (N, C, H, W), whitened."""
        return tuple(layer(x) for layer, x in zip(self.layers, feats[-len(self.layers) :], strict=True))
