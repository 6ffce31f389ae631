"""Give a random backbone the BatchNorm statistics of its data."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats
from mmpretrain.utils import get_ori_model
from torch.utils.data import DataLoader


def calibrate_batch_norm(model: BaseModel, loader: DataLoader, num_samples: int, logger: str) -> None:
    """Set the statistics of the backbone's BatchNorm layers to those of so many samples; they stay in train mode."""
    for module in model.backbone.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    update_bn_stats(model, loader, num_samples, logger=logger)


@HOOKS.register_module()
class CalibrateBNHook(Hook):
    """Before training, set the backbone's BatchNorm statistics to those of the training data.

    For a frozen *random* backbone, the control of every probe: with its initial statistics (mean 0, variance 1) it
    would be a straw man. The statistics stay as they are from then on.

    Args:
        num_samples: Training samples to average over.
    """

    def __init__(self, num_samples: int = 2048) -> None:
        self.num_samples = num_samples

    @torch.no_grad()
    def before_train(self, runner: Runner) -> None:
        """Calibrate, unless the run is resumed and carries its statistics."""
        if runner.iter > 0:
            return
        model = get_ori_model(runner.model)
        calibrate_batch_norm(model, runner.train_dataloader, self.num_samples, logger='current')
        model.train(model.training)  # frozen parts back to eval mode
