"""BatchNorm statistics for a random backbone."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from pydantic import PositiveInt

from ...arguments import check_arguments
from ...evaluation.functional.features import calibrate_batch_norm


@HOOKS.register_module()
class CalibrateBNHook(Hook):
    """Before training, set the backbone's BatchNorm statistics to those of the training data.

    For a frozen *random* backbone, the control of every probe: its initial statistics (mean 0, variance 1) would make
    it a weaker baseline than the architecture is. The statistics do not change afterwards.

    Args:
        num_samples: Training samples to average over.
    """

    @check_arguments
    def __init__(self, num_samples: PositiveInt = 2048) -> None:
        self.num_samples = num_samples

    def before_train(self, runner: Runner) -> None:
        """Calibrate, unless the run is resumed: its checkpoint holds the statistics."""
        if runner.iter > 0:
            return
        model = get_ori_model(runner.model)
        calibrate_batch_norm(model, runner.train_dataloader, self.num_samples, logger='current')
        model.train(model.training)  # restore the modes of the backbone's BatchNorm layers
