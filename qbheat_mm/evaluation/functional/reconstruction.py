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
from mmpretrain.structures import DataSample
from torch import Tensor

from ...datasets.transforms import LoadImage
from ...models import QBHeat
from ...models.utils import gather_tokens, patchify, unpatchify

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
        the metrics ``masked_loss`` and ``constant_loss``. Where a model predicts no pixels, ``reconstruction`` is a
        drawing of what it predicts, and ``target`` one of what it should.

    Raises:
        ValueError: If there is no drawing of what the model predicts.
    """
    data = model.data_preprocessor(batch, False)
    inputs, samples = data['inputs'], model.predict(data['inputs'], data['data_samples'])
    original = _to_pixels(model, inputs)
    images = dict(original=original, visible=_gray_out(original, samples, model.patch_size))
    images |= _draw_predictions(model, inputs, samples)
    results = [dict(masked_loss=sample.masked_loss, constant_loss=sample.constant_loss) for sample in samples]
    for name, each in images.items():
        for result, array in zip(results, each.clamp(0, 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()):
            result[name] = array
    return results


def _gray_out(images: Tensor, samples: Sequence[DataSample], patch_size: int) -> Tensor:
    """Images (N, 3, H, W) with all but the visible quarter gray."""
    height, width = (side // 2 for side in images.shape[2:])
    visible = torch.full_like(images, 128)
    for image, gray, sample in zip(images, visible, samples):
        top, left = (cell * patch_size for cell in sample.visible_origin)
        area = (slice(None), slice(top, top + height), slice(left, left + width))
        gray[area] = image[area]
    return visible


def _draw_predictions(model: QBHeat, inputs: Tensor, samples: Sequence[DataSample]) -> dict[str, Tensor]:
    """Images (N, 3, H, W) of 0 to 255: what is visible, and the predictions in the masked patches."""
    pred, masked_ids = (torch.stack([sample.get(name) for sample in samples]) for name in ('pred', 'masked_ids'))
    generator, size = model.target_generator, inputs.shape[2:]
    if hasattr(generator, 'draw'):
        tokens = generator(inputs)
        values = model.head.to_pixels(pred, gather_tokens(tokens, masked_ids))
        return dict(
            target=generator.draw(tokens, size),
            reconstruction=generator.draw(_fill_in(tokens, masked_ids, values), size),
        )
    target = model.target(inputs, masked_ids)
    if target.shape[-1] != 3 * model.patch_size**2:
        raise ValueError(f'{type(generator).__name__} targets cannot be drawn; pixels and HOG can.')
    patches = patchify(inputs.float(), model.patch_size)
    patches = _fill_in(patches, masked_ids, model.head.to_pixels(pred, target))
    return dict(reconstruction=_to_pixels(model, unpatchify(patches, size, model.patch_size)))


def _fill_in(tokens: Tensor, masked_ids: Tensor, values: Tensor) -> Tensor:
    """Tokens (N, L, V) with ``values`` (N, M, V) at the positions ``masked_ids`` (N, M)."""
    return tokens.scatter(1, masked_ids[..., None].expand_as(values), values)


def _to_pixels(model: QBHeat, inputs: Tensor) -> Tensor:
    """Undo the data preprocessor's normalization: (N, 3, H, W) -> values of 0 to 255."""
    preprocessor = model.data_preprocessor
    return inputs * preprocessor.std + preprocessor.mean if preprocessor._enable_normalize else inputs


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
