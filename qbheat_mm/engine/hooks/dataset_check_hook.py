"""Look at the data before training on it."""

from __future__ import annotations

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...datasets.coco import AnnotationError
from ...datasets.config_validation import check_config


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Check the COCO datasets of a detection config before its first iteration, and stop where they are wrong.

    Put it into ``default_hooks``, as ``check_dataset=dict(type='DatasetCheckHook')``; then
    ``--cfg-options default_hooks.check_dataset.enabled=False`` leaves it out.

    Args:
        sample: How many images of each dataset are decoded; that all are there is checked in any case.
        enabled: Whether to check.
    """

    def __init__(self, sample: int = 200, enabled: bool = True) -> None:
        self.sample = sample
        self.enabled = enabled

    def before_train(self, runner: Runner) -> None:
        """Check in the main process; stop in all.

        Raises:
            AnnotationError: With all errors found.
        """
        if not self.enabled:
            return
        errors = [None]
        if is_main_process():
            report = check_config(runner.cfg, splits=('train', 'val'), sample=self.sample)
            for text in report.warnings:
                runner.logger.warning(f'Data: {text}')
            for text in report.notes:
                runner.logger.info(f'Data: {text}')
            errors = [report.errors]
        broadcast_object_list(errors)
        if errors[0]:
            raise AnnotationError(
                'The data cannot be trained on:\n  '
                + '\n  '.join(errors[0])
                + '\n`python tools/misc/check_dataset.py CONFIG` checks again. To train in spite of it: '
                '--cfg-options default_hooks.check_dataset.enabled=False'
            )
