"""In place of a backbone whose features are read from disk."""

from __future__ import annotations

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class IdentityBackbone(BaseModule):
    """Hands on what ``FeatureDataset`` gives, as a backbone would return it."""

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """(N, C, H, W) as it is."""
        return (features,)
