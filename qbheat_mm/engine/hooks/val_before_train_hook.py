"""Validate once before training."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ValBeforeTrainHook(Hook):
    """Run the validation loop on the initial weights, the first point of every curve."""

    priority = 'VERY_LOW'  # after CalibrateBNHook

    def before_train(self, runner: Runner) -> None:
        """Validate, unless the run is resumed."""
        if runner.iter == 0 and runner.val_loop is not None:
            runner.val_loop.run()
            runner.model.train()
