"""Check classes before training."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from ...datasets.config_validation import check_classes


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Stop before training if the classes of training data, validation data and head differ."""

    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check.

        Raises:
            ValueError: With the classes that differ, or both numbers.
        """
        model = get_ori_model(runner.model)
        if not hasattr(model, 'head'):
            return  # a detector, which DatasetCheckHook checks
        head = getattr(model.head, 'heads', [model.head])[0]  # LRSweepHead has several
        train = runner.train_dataloader.dataset
        val = train if runner.val_loop is None else runner.val_dataloader.dataset
        check_classes(train, val, getattr(head, 'num_classes', None))
