"""Two lines from a trained model to reconstructions and features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmpretrain.apis.base import BaseInferencer
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import Tensor

from ..checkpoint import load_pretrained
from ..datasets.image_folder import EXTENSIONS
from ..datasets.transforms import decode_image
from ..models import QBHeat


class QBHeatInferencer(BaseInferencer):
    """Reconstruct images from one quarter, or extract features of whole ones.

    >>> inferencer = QBHeatInferencer('configs/qbheat/...py', 'work_dirs/.../epoch_200.pth')
    >>> inferencer('photo.jpg')[0]['reconstruction']  # (H, W, 3), RGB

    Args:
        config: A QB-Heat config, its file, or a model. Config text inside a checkpoint, which is Python, is never
            executed.
        checkpoint: Weights of the whole model; None keeps those it has.
        device: Defaults to the GPU where there is one.

    Raises:
        CheckpointError: If the checkpoint is not a file of plain weights, or does not fit.
    """

    preprocess_kwargs = {'visible'}

    def __init__(self, config: str | Config | QBHeat, checkpoint: str | None = None, device: str | None = None) -> None:
        if isinstance(config, QBHeat):
            model = config
        else:
            cfg = Config.fromfile(config) if isinstance(config, (str, Path)) else config
            with DefaultScope.overwrite_default_scope('mmpretrain'):
                model = MODELS.build(cfg.model)
            model._config = cfg
        if checkpoint is not None:
            load_pretrained(model, checkpoint)
        model._config = getattr(model, '_config', None)  # where mmpretrain's inferencers keep it
        super().__init__(model, pretrained=None, device=device or get_device())

    def reconstruct(self, inputs, visible: str = 'top_left', batch_size: int = 8) -> list[dict[str, np.ndarray]]:
        """The same as calling the inferencer, which shows its progress.

        Args:
            inputs: A path, a folder, an array as OpenCV reads it (H, W, 3 in BGR), or a list of them.
            visible: Which block stays visible, see ``QuarterMask``.
            batch_size: Images at a time.

        Returns:
            Per image ``original``, ``visible`` (the rest gray) and ``reconstruction``, uint8 arrays (H, W, 3) in RGB
            with H = W = the model's ``img_size``, and the metrics ``masked_loss`` and ``constant_loss``.
        """
        batches = self.preprocess(list_images(inputs), batch_size, visible)
        return [result for batch in batches for result in self.forward(batch)]

    @torch.no_grad()
    def extract_feat(self, inputs, batch_size: int = 8) -> list[tuple[Tensor, ...]]:
        """Features of whole images: per image what the backbone returns, without the batch dimension."""
        features = []
        for data in self.preprocess(list_images(inputs), batch_size):
            images = self.model.data_preprocessor(data, False)['inputs']
            outs = self.model.extract_feat(images)
            features.extend(tuple(out[i] for out in outs) for i in range(len(images)))
        return features

    def _inputs_to_list(self, inputs) -> list:
        return list_images(inputs)

    def _init_pipeline(self, cfg: Config) -> Callable:
        size = self.model.img_size
        return [
            dict(type='ResizeEdge', scale=size, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=size),
            dict(type='QuarterMask', input_size=size, stride=self.model.stride),
            dict(type='PackInputs', meta_keys=('img_path', 'visible_origin')),
        ]

    def preprocess(self, inputs: Sequence, batch_size: int = 1, visible: str = 'top_left'):
        """Batches of images, resized and cut to the model's square, with the visible block chosen."""
        steps = [dict(step, visible=visible) if step['type'] == 'QuarterMask' else step for step in self.pipeline]
        pipeline = Compose([_load, *(TRANSFORMS.build(step) for step in steps)])
        yield from map(default_collate, self._get_chunk_data(map(pipeline, inputs), batch_size))

    @torch.no_grad()
    def forward(self, inputs: dict) -> list[dict]:
        """Predict a batch and bring everything back to pixels."""
        model = self.model
        data = model.data_preprocessor(inputs, False)
        samples = model.predict(data['inputs'], data['data_samples'])
        pixels = model.to_pixels(data['inputs'])
        block, results = model.img_size // 2, []
        for image, sample in zip(pixels, samples):
            top, left = (cell * model.stride for cell in sample.visible_origin)
            visible = torch.full_like(image, 128)
            area = (slice(None), slice(top, top + block), slice(left, left + block))
            visible[area] = image[area]
            images = dict(original=image, visible=visible, reconstruction=sample.reconstruction)
            results.append(
                {name: _to_array(each) for name, each in images.items()}
                | dict(masked_loss=sample.masked_loss, constant_loss=sample.constant_loss)
            )
        return results

    def visualize(self, inputs: list, preds: list[dict], **kwargs) -> None:
        """Nothing here: see :func:`draw_reconstructions`."""

    def postprocess(self, preds: list[dict], visualization, return_datasamples: bool = False, **kwargs) -> list[dict]:
        """The results as they are."""
        return preds


def list_images(inputs) -> list:
    """A folder's images, in order and at any depth; a list as it is; anything else as a list of one.

    Raises:
        FileNotFoundError: If there is no image in the folder, or no such file.
    """
    if isinstance(inputs, (str, Path)) and Path(inputs).is_dir():
        files = sorted(path for path in Path(inputs).rglob('*') if path.suffix.lower() in EXTENSIONS)
        if not files:
            raise FileNotFoundError(f'There is no image in "{inputs}" that ends in {", ".join(EXTENSIONS)}.')
        return files
    images = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    for image in images:
        if isinstance(image, (str, Path)) and not Path(image).is_file():
            raise FileNotFoundError(f'There is no image "{image}".')
    return images


def _load(source: str | Path | np.ndarray) -> dict:
    if isinstance(source, np.ndarray):
        image, path = source, None
    else:
        path = str(source)
        try:
            image = decode_image(Path(path).read_bytes())
        except Exception as error:
            raise ValueError(f'The image "{path}" cannot be read: {error}') from error
    return dict(img=image, img_path=path, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def _to_array(image: Tensor) -> np.ndarray:
    """(3, H, W) of 0 to 255 -> (H, W, 3) in uint8."""
    return image.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
