"""Report images that could not be read."""

from __future__ import annotations

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from pydantic import NonNegativeInt

from ...arguments import check_arguments
from ...datasets.image_folder import find_image_folders
from ...text import join_names


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """After each epoch, count and name the images that ``ImageFolderDataset``, wrapped or not, newly had to skip.

    Args:
        max_names: Maximum number of names.
    """

    @check_arguments
    def __init__(self, max_names: NonNegativeInt = 20) -> None:
        self.max_names = max_names
        self._told = 0

    def after_train_epoch(self, runner: Runner) -> None:
        """Log what was skipped, over all processes."""
        datasets, skipped = find_image_folders(runner.train_dataloader.dataset), []
        for dataset in datasets:
            # NCCL reduces device tensors only
            flags = dataset.unreadable.to(device=next(runner.model.parameters()).device, dtype=torch.int32)
            dist.all_reduce(flags, op='max')
            dataset.unreadable.copy_(flags)
            skipped += dataset.skipped_images()
        if len(skipped) > self._told:
            self._told = len(skipped)
            runner.logger.warning(
                f'{len(skipped)} of {sum(map(len, datasets))} images could not be read and were skipped: '
                + join_names(skipped, self.max_names)
            )
