"""Visualize reconstructions during pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from pydantic import Field, PositiveInt

from ...arguments import check_arguments
from ...datasets.image_folder import list_images
from ...datasets.transforms.quarter_mask import Placement
from ...evaluation.functional.reconstruction import reconstruct, training_size
from ...visualization import draw_reconstructions


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Every ``interval`` epochs, and after the last, draw reconstructions of fixed images with ``runner.visualizer``.

    Its backends determine where they are stored: ``vis_data/vis_image`` in the work dir, TensorBoard, W&B, ...

    Args:
        images: A folder, or image files.
        limit: Maximum number of images.
        interval: Epochs between drawings.
        visible: The visible block, see ``QuarterMask``; a fixed one makes drawings comparable.

    Raises:
        FileNotFoundError: Before training, if an image is missing or there is none.
    """

    @check_arguments
    def __init__(
        self,
        images: str | Annotated[Sequence[str], Field(min_length=1)],
        limit: Annotated[int, Field(gt=0, le=1000)] = 8,
        interval: PositiveInt = 10,
        visible: Placement = 'top_left',
    ) -> None:
        self.images = images
        self.limit = limit
        self.interval = interval
        self.visible = visible

    def before_train(self, runner: Runner) -> None:
        """List the images, so that a missing one stops the run now."""
        self._img_size = training_size(runner.cfg)
        self._files = list_images(self.images)[: self.limit]

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        """Draw."""
        if not (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)):
            return
        model = get_ori_model(runner.model)
        results = reconstruct(model, self._files, self._img_size, self.visible)
        model.train()
        drawing = np.asarray(draw_reconstructions(results))
        runner.visualizer.add_image('reconstruction', drawing, step=runner.epoch + 1)
