"""Targets and loss of QB-Heat's pre-training."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from ...arguments import Component, InitConfig, check_arguments
from ..utils import normalize_patches


@MODELS.register_module()
class QBHeatPretrainHead(BaseModule):
    """MAE's pixel targets and loss, given masked patches alone.

    Args:
        loss: Config of the loss, mmpretrain's ``PixelReconstructionLoss``.
        norm_pix: Normalize each target patch to mean 0 and variance 1, as MAE does.
        init_cfg: Initialization.
    """

    @check_arguments
    def __init__(self, loss: Component, norm_pix: bool = True, init_cfg: InitConfig = None) -> None:
        super().__init__(init_cfg)
        self.loss_module = MODELS.build(loss)
        self.norm_pix = norm_pix

    def construct_target(self, patches: Tensor) -> Tensor:
        """What is to be predicted for patches (N, M, V): with ``norm_pix``, mean and contrast are left out."""
        return normalize_patches(patches) if self.norm_pix else patches

    def loss(self, pred: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """The loss on masked patches, in float32.

        Args:
            pred: (N, M, V), the decoder's output at the masked positions.
            patches: (N, M, V), what lies there.

        Returns:
            ``loss``, a scalar.

        Raises:
            ValueError: If the decoder does not predict as many values per position as the target has.
        """
        if pred.shape != patches.shape:
            raise ValueError(
                f'The decoder predicts {pred.shape[-1]} values per position, the target has {patches.shape[-1]}: set '
                f'decoder.out_channels={patches.shape[-1]}.'
            )
        with torch.autocast(pred.device.type, enabled=False):
            return dict(loss=self.loss_module(pred.float(), self.construct_target(patches.float())))

    def sample_losses(self, pred: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Per image, the loss beside that of the best constant per patch (about 1 with ``norm_pix``).

        Args:
            pred: (N, M, V).
            patches: (N, M, V).

        Returns:
            Two tensors (N,).
        """
        target = self.construct_target(patches.float())
        constant = target.mean(dim=-1, keepdim=True).expand_as(target)
        return tuple(self.loss_module.penalty(each.float(), target).mean((1, 2)) for each in (pred, constant))

    def to_pixels(self, pred: Tensor, patches: Tensor) -> Tensor:
        """Predicted patches (N, M, V) as pixel values.

        With ``norm_pix`` a patch is predicted up to its mean and contrast, which are taken from ``patches``.
        """
        if not self.norm_pix:
            return pred
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return pred * (variance + 1e-6).sqrt() + mean
