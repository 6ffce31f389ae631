"""See what the model reconstructs while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from ...datasets.image_folder import list_images
from ...evaluation.functional.reconstruction import reconstruct, training_size
from ...visualization import draw_reconstructions


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """After every few epochs, draw reconstructions of fixed images through ``runner.visualizer``.

    They go wherever the visualizer's backends write: ``vis_data/vis_image`` of the work dir, TensorBoard, W&B, ...

    Args:
        images: A folder, or image files.
        limit: How many to draw at the most.
        interval: Epochs between drawings.
        visible: Which block stays visible, see ``QuarterMask``; a fixed one, so that drawings compare.

    Raises:
        FileNotFoundError: Before training, if there is no image.
    """

    def __init__(
        self, images: str | Sequence[str], limit: int = 8, interval: int = 10, visible: str = 'top_left'
    ) -> None:
        self.images = images
        self.limit = limit
        self.interval = interval
        self.visible = visible

    def before_train(self, runner: Runner) -> None:
        """Look for the images now and not hours later."""
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
