"""Channel shuffle that every exporter knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelShuffle(nn.ChannelShuffle):
    """PyTorch's, in basic operations where it is traced: ``torch.onnx.export(dynamo=False)`` lacks the operator."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), its channels shuffled between the groups."""
        if torch.jit.is_tracing():
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return super().forward(x)
