"""Frozen features, whitened."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Whitening(BaseModule):
    """A fixed affine map after which features have mean 0 and, over pictures and positions, covariance I.

    QB-Heat's features spread most of their variance over a handful of directions. A head on frozen features learns what
    stands in the others slowly, though a linear map of it could read all alike. Not the paper's.

    The statistics are :class:`~qbheat_mm.engine.hooks.WhiteningHook`'s to set and travel with checkpoints. Of all
    whitening maps this one (ZCA) changes features the least.

    Args:
        in_channels: Channels C of the features.
        eps: Added to every variance, as a share of the largest one, so that directions in which features hardly vary
            are not blown up to noise.
    """

    def __init__(self, in_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer('mean', torch.full((in_channels,), torch.nan))
        self.register_buffer('matrix', torch.eye(in_channels))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, covariance: Tensor) -> None:
        """Whiten features with this mean (C,) and covariance (C, C) from now on."""
        variances, directions = torch.linalg.eigh(covariance.double())
        scales = (variances.clamp(min=0) + self.eps * variances[-1]).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(directions * scales @ directions.mT)

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor]:
        """The last of ``feats``, (N, C) or (N, C, H, W), whitened.

        Raises:
            RuntimeError: If there are no statistics yet.
        """
        if self.mean.isnan().any():
            raise RuntimeError(
                "Whitening has no statistics. Add custom_hooks=[dict(type='WhiteningHook')] to the config, which takes "
                'them before training, or load a checkpoint that carries them.'
            )
        features = feats[-1]
        mean = self.mean.view(-1, *[1] * (features.ndim - 2))
        return (torch.einsum('dc,nc...->nd...', self.matrix, features - mean),)
