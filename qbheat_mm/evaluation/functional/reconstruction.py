"""Reconstructions of images as arrays that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.utils import slice_list
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ...datasets.transforms import LoadImage
from ...models import QBHeat

Image = str | Path | np.ndarray


def build_pipeline(img_size: int, patch_size: int, visible: str = 'top_left') -> Compose:
    """From a path, or an array as OpenCV reads it, to a sample: resized, center crop, visible block chosen."""
    steps = [
        dict(type='ResizeEdge', scale=img_size, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=img_size),
        dict(type='QuarterMask', patch_size=patch_size, visible=visible),
        dict(type='PackInputs', meta_keys=('img_path', 'visible_origin')),
    ]
    return Compose([_load, *(TRANSFORMS.build(step) for step in steps)])


def training_size(cfg: Config) -> int:
    """Side in pixels of a config's training crops.

    Raises:
        ValueError: If its pipeline does not crop to a square.
    """
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:  # a wrapper's
        dataset = dataset['dataset']
    for step in dataset.get('pipeline', ()):
        if 'RandomResizedCrop' in str(step['type']) and isinstance(step.get('scale'), int):
            return step['scale']
    raise ValueError('The config has no training pipeline with a RandomResizedCrop to a square: give img_size.')


@torch.no_grad()
def predict_arrays(model: QBHeat, batch: dict) -> list[dict]:
    """Reconstruct a batch of samples.

    Returns:
        Per image ``original``, ``visible`` (the rest gray) and ``reconstruction``, uint8 arrays (H, W, 3) in RGB, and
        the metrics ``masked_loss`` and ``constant_loss``.
    """
    data = model.data_preprocessor(batch, False)
    samples = model.predict(data['inputs'], data['data_samples'])
    results = []
    for image, sample in zip(model.to_pixels(data['inputs']), samples):
        top, left = (cell * model.patch_size for cell in sample.visible_origin)
        height, width = (side // 2 for side in image.shape[1:])
        visible = torch.full_like(image, 128)
        area = (slice(None), slice(top, top + height), slice(left, left + width))
        visible[area] = image[area]
        images = dict(original=image, visible=visible, reconstruction=sample.reconstruction)
        results.append(
            {name: _to_array(each) for name, each in images.items()}
            | dict(masked_loss=sample.masked_loss, constant_loss=sample.constant_loss)
        )
    return results


def reconstruct(
    model: QBHeat, images: Sequence[Image], img_size: int, visible: str = 'top_left', batch_size: int = 8
) -> list[dict]:
    """Reconstruct images, as :func:`predict_arrays` returns them; the model is left in eval mode.

    Args:
        model: A trained model.
        images: Paths, or arrays as OpenCV reads them (H, W, 3 in BGR).
        img_size: Side of the square that is cut out of each image.
        visible: Which block stays visible, see ``QuarterMask``.
        batch_size: Images at a time.
    """
    model.eval()
    pipeline = build_pipeline(img_size, model.patch_size, visible)
    lengths = [min(batch_size, len(images) - start) for start in range(0, len(images), batch_size)]
    batches = slice_list(list(images), lengths)
    return [
        result for batch in batches for result in predict_arrays(model, default_collate([pipeline(i) for i in batch]))
    ]


def _load(source: Image) -> dict:
    if not isinstance(source, np.ndarray):
        return LoadImage(ignore_empty=False)(dict(img_path=str(source)))
    return dict(img=source, img_path=None, img_shape=source.shape[:2], ori_shape=source.shape[:2])


def _to_array(image: Tensor) -> np.ndarray:
    """(3, H, W) of 0 to 255 -> (H, W, 3) in uint8."""
    return image.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
