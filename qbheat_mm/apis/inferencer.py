"""Two lines from a trained model to reconstructions and features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmpretrain.apis.base import BaseInferencer
from mmpretrain.registry import MODELS
from torch import Tensor

from ..checkpoint import load_pretrained
from ..datasets.image_folder import list_images
from ..evaluation.functional.reconstruction import build_pipeline, predict_arrays, training_size
from ..models import QBHeat


class QBHeatInferencer(BaseInferencer):
    """Reconstruct images from one quarter, or extract features of whole ones.

    >>> inferencer = QBHeatInferencer('configs/qbheat/...py', 'work_dirs/.../epoch_200.pth')
    >>> inferencer('photo.jpg')[0]['reconstruction']  # (H, W, 3), RGB

    Args:
        config: A QB-Heat config or its file. Config text inside a checkpoint, which is Python, is never executed.
        checkpoint: Weights of the whole model; None keeps those it has.
        device: Defaults to the GPU where there is one.
        img_size: Side of the square that is cut out of each image; defaults to that of the config's training crops.

    Raises:
        CheckpointError: If the checkpoint is not a file of plain weights, or does not fit.
        ValueError: If the config does not say the size.
    """

    preprocess_kwargs = {'visible'}

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | None = None,
        device: str | None = None,
        img_size: int | None = None,
    ) -> None:
        cfg = Config.fromfile(config) if isinstance(config, (str, Path)) else config
        self.img_size = img_size or training_size(cfg)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model: QBHeat = MODELS.build(cfg.model)
        if checkpoint is not None:
            load_pretrained(model, checkpoint)
        model._config = cfg  # where mmpretrain's inferencers keep it
        super().__init__(model, pretrained=None, device=device or get_device())

    def reconstruct(self, inputs, visible: str = 'top_left', batch_size: int = 8) -> list[dict[str, np.ndarray]]:
        """The same as calling the inferencer, which shows its progress.

        Args:
            inputs: A path, a folder, an array as OpenCV reads it (H, W, 3 in BGR), or a list of them.
            visible: Which block stays visible, see ``QuarterMask``.
            batch_size: Images at a time.

        Returns:
            Per image ``original``, ``visible`` (the rest gray) and ``reconstruction``, uint8 arrays (H, W, 3) in RGB
            with H = W = ``img_size``, and the metrics ``masked_loss`` and ``constant_loss``.
        """
        batches = self.preprocess(list_images(inputs), batch_size, visible)
        return [result for batch in batches for result in self.forward(batch)]

    @torch.no_grad()
    def extract_feat(self, inputs, batch_size: int = 8) -> list[tuple[Tensor, ...]]:
        """Features of whole images: per image what the backbone returns, without the batch dimension."""
        features: list[tuple[Tensor, ...]] = []
        for data in self.preprocess(list_images(inputs), batch_size):
            images = self.model.data_preprocessor(data, False)['inputs']
            outs = self.model.extract_feat(images)
            features.extend(tuple(out[i] for out in outs) for i in range(len(images)))
        return features

    def _inputs_to_list(self, inputs) -> list:
        return list_images(inputs)

    def _init_pipeline(self, cfg: Config) -> Callable:
        return build_pipeline(self.img_size, self.model.patch_size)

    def preprocess(self, inputs: Sequence, batch_size: int = 1, visible: str = 'top_left'):
        """Batches of images, resized and cut to the square, with the visible block chosen."""
        pipeline = build_pipeline(self.img_size, self.model.patch_size, visible)
        yield from map(default_collate, self._get_chunk_data(map(pipeline, inputs), batch_size))

    def forward(self, inputs: dict) -> list[dict]:
        """Predict a batch and bring everything back to pixels."""
        return predict_arrays(self.model, inputs)

    def visualize(self, inputs: list, preds: list[dict], **kwargs) -> None:
        """Nothing here: see :func:`draw_reconstructions`."""

    def postprocess(self, preds: list[dict], visualization, return_datasamples: bool = False, **kwargs) -> list[dict]:
        """The results as they are."""
        return preds
