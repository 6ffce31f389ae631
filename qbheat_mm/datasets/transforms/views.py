"""Random augmentations that are drawn in the worker and applied on the device, to a batch at a time.

A transform here draws what its namesake draws, from the same generators in the same order, and writes it into
``results['view']`` instead of changing the image. ``ViewDataPreprocessor`` makes the views of the whole images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import RandomFlip, RandomGrayscale
from mmengine.registry import FUNCTIONS
from mmpretrain.datasets import ColorJitter, GaussianBlur, MultiView, PackInputs
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample

from ...arguments import check_arguments
from .random_resized_crop import TorchRandomResizedCrop


@TRANSFORMS.register_module()
class DrawRandomResizedCrop(TorchRandomResizedCrop):
    """Draws the crop of ``TorchRandomResizedCrop``; the first transform of a view.

    **Required Keys:** ``img``. **Added Keys:** ``view``, a dict with the ``box`` (top, left, height, width), the
    ``size`` (height, width) and the ``interpolation``.
    """

    def transform(self, results: dict) -> dict:
        """Draw the crop of ``results['img']``."""
        box = tuple(map(int, self.rand_crop_params(results['img'])))
        results['view'] = dict(box=box, size=tuple(self.scale), interpolation=self.interpolation)
        return results


@TRANSFORMS.register_module()
class DrawRandomFlip(RandomFlip):
    """Draws mmcv's horizontal ``RandomFlip``: ``view['flip']``."""

    @check_arguments
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.direction != 'horizontal':
            raise ValueError(f"{type(self).__name__}: direction={self.direction!r}; only 'horizontal' is available.")

    def _flip(self, results: dict) -> None:
        results['view']['flip'] = True


@TRANSFORMS.register_module()
class DrawColorJitter(ColorJitter):
    """Draws mmpretrain's ``ColorJitter``: ``view['jitter']``, pairs of an operation's number and its factor."""

    def transform(self, results: dict) -> dict:
        """Draw order and factors."""
        order, *factors = self._rand_params()
        results['view']['jitter'] = [(int(i), float(factors[i])) for i in order if factors[i] is not None]
        return results


@TRANSFORMS.register_module()
class DrawRandomGrayscale(RandomGrayscale):
    """Draws mmcv's ``RandomGrayscale``: ``view['gray']``, the weights of the channels."""

    def transform(self, results: dict) -> dict:
        """Draw whether the view is gray."""
        if self._random_prob() < self.prob:
            results['view']['gray'] = tuple(weight / sum(self.channel_weights) for weight in self.channel_weights)
        return results


@TRANSFORMS.register_module()
class DrawGaussianBlur(GaussianBlur):
    """Draws mmpretrain's ``GaussianBlur``: ``view['blur']``, the radius."""

    def transform(self, results: dict) -> dict:
        """Draw whether the view is blurred, and how much."""
        if not self.random_disable():
            results['view']['blur'] = float(self.radius if self.radius is not None else self.random_magnitude())
        return results


@TRANSFORMS.register_module()
class DrawMultiView(MultiView):
    """Draws the views of mmpretrain's ``MultiView``: ``views``, a list of dicts. The image is not copied."""

    def transform(self, results: dict) -> dict:
        """Draw the views."""
        results['views'] = [draw(dict(results))['view'] for draw in self.transforms]
        return results


@TRANSFORMS.register_module()
class DrawPackInputs(PackInputs):
    """mmpretrain's ``PackInputs`` for whole images, left as arrays (H, W, 3), and for views; see ``collate_views``."""

    @check_arguments
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.meta_keys = (*self.meta_keys, 'view', 'views')

    @staticmethod
    def format_input(input_: np.ndarray) -> np.ndarray:
        """The image as it is."""
        return input_


@FUNCTIONS.register_module()
def collate_views(samples: Sequence[dict]) -> dict[str, torch.Tensor | list[DataSample]]:
    """A batch of whole images of any sizes: ``inputs``, the bytes of all of them in one tensor, and ``data_samples``.

    Each sample keeps the shape of its image as ``whole_shape``.
    """
    images = [sample['inputs'] for sample in samples]
    for image, sample in zip(images, samples):
        sample['data_samples'].set_field(image.shape[:2], 'whole_shape', field_type='metainfo')
    inputs = torch.empty(sum(image.size for image in images), dtype=torch.uint8)
    if torch.utils.data.get_worker_info() is not None:
        inputs.share_memory_()  # written once, where the main process reads it
    np.concatenate([image.reshape(-1) for image in images], out=inputs.numpy())
    return dict(inputs=inputs, data_samples=[sample['data_samples'] for sample in samples])


UNCHANGED = ('QuarterMask',)  # of steps without a namesake here, those that do not change the image


def draw_views(pipeline: Sequence[dict]) -> list[dict]:
    """A pipeline for decoded images, with the transforms of this module in the place of their namesakes.

    Raises:
        ValueError: If a step has no counterpart here.
    """
    steps = []
    for step in pipeline:
        kind = step['type'] if isinstance(step['type'], str) else step['type'].__name__
        kind = kind.rpartition('.')[2]
        step = {name: value for name, value in step.items() if (kind, name) != ('RandomResizedCrop', 'backend')}
        counterpart = f'Draw{kind.removeprefix("Torch")}'
        if 'transforms' in step:
            step['transforms'] = _draw_nested(step['transforms'])
        if counterpart in globals():
            step['type'] = counterpart
        elif kind not in (*UNCHANGED, 'RandomApply'):
            known = [name.removeprefix('Draw') for name in globals() if name.startswith('Draw')]
            raise ValueError(
                f'device_crops=True: {kind} cannot be applied on the device; these can: {", ".join(known)}. Leave it '
                'out, or set device_crops=False.'
            )
        steps.append(step)
    return steps


def _draw_nested(steps: Sequence) -> list:
    """:func:`draw_views` of a pipeline, or of each in a list of them."""
    if steps and isinstance(steps[0], (list, tuple)):
        return [draw_views(each) for each in steps]
    return draw_views(steps)
