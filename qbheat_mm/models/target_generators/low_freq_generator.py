"""Low-frequency pixels as targets, as in PixMIM."""

from __future__ import annotations

from typing import Annotated

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from pydantic import Field
from torch import Tensor

from ...arguments import check_arguments


@MODELS.register_module()
class LowFreqTargetGenerator(BaseModule):
    """The image without its high frequencies, the target of `PixMIM <https://arxiv.org/abs/2303.02416>`_.

    Args:
        cutoff: Highest frequency that stays, in cycles per pixel, of at most 0.5. PixMIM's radius of 40 at 224 px is
            0.18.
    """

    @check_arguments
    def __init__(self, cutoff: Annotated[float, Field(gt=0, le=0.5)] = 0.18) -> None:
        super().__init__()
        self.cutoff = cutoff

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W), in float32."""
        height, width = images.shape[2:]
        along_y = torch.fft.fftfreq(height, device=images.device)[:, None]
        along_x = torch.fft.rfftfreq(width, device=images.device)
        spectrum = torch.fft.rfft2(images.float()) * (torch.hypot(along_x, along_y) <= self.cutoff)
        return torch.fft.irfft2(spectrum, s=(height, width))
