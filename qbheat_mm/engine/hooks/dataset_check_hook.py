"""Pre-flight validation of detection data."""

from __future__ import annotations

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from pydantic import NonNegativeInt

from ...arguments import check_arguments
from ...datasets.coco import AnnotationError
from ...datasets.config_validation import check_config


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Validate the COCO datasets of a detection config before its first iteration, and stop after errors.

    Args:
        sample: Number of images of each dataset that are decoded; that all files exist is checked in any case.
    """

    @check_arguments
    def __init__(self, sample: NonNegativeInt = 200) -> None:
        self.sample = sample

    def before_train(self, runner: Runner) -> None:
        """Check in the main process; stop in all.

        Raises:
            AnnotationError: With all errors found.
        """
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
                + '\n`python tools/misc/check_dataset.py CONFIG` repeats this check. To train all the '
                'same: --cfg-options default_hooks.dataset_check=None'
            )
