"""RandomResizedCrop that resizes uint8 with torch instead of Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.datasets import RandomResizedCrop
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps
from pydantic import Field

from ...arguments import Size, check_arguments
from .loading import decode_image, is_loaded, is_transposed, open_image, read_content, unreadable

Scale = Size | Annotated[Sequence[Size], Field(min_length=2, max_length=2)]


@TRANSFORMS.register_module()
class TorchRandomResizedCrop(RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop(backend='pillow')``, resized by torch instead of Pillow.

    The same seed gives the same crop as mmpretrain's. Torch's antialiased resizing of uint8 on a CPU uses Pillow's
    filters, horizontal pass first, and rounds to uint8 between the passes; pixels differ from Pillow's in this order by
    rounding, at most 2 of 255 (Pillow 13 starts with the vertical pass for some shapes, which is visible in noise,
    where bicubic overshoots between the passes). It needs no copy to a Pillow image and back and takes a tenth of the
    time.

    **Required Keys:** ``img``, uint8, (H, W, 3) or (H, W). **Modified Keys:** ``img``, ``img_shape``.

    Args:
        scale: Side of the output, or (height, width), in pixels.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        **kwargs: ``crop_ratio_range``, ``aspect_ratio_range`` and ``max_attempts``, as in mmpretrain.
    """

    @check_arguments
    def __init__(self, scale: Scale, interpolation: Literal['bilinear', 'bicubic'] = 'bilinear', **kwargs) -> None:
        super().__init__(scale, interpolation=interpolation, backend='pillow', **kwargs)

    def transform(self, results: dict) -> dict:
        """Crop and resize ``results['img']``."""
        top, left, height, width = self.rand_crop_params(results['img'])
        return self._resize(results, results['img'][top : top + height, left : left + width])

    def _resize(self, results: dict, crop: np.ndarray) -> dict:
        reversed_channels = crop.strides[-1] < 0  # BGR as a view of RGB, which torch cannot take
        array = crop[..., ::-1] if reversed_channels else crop
        planes = torch.from_numpy(np.require(array, requirements='W'))  # a copy of packed images, which are read-only
        planes = planes.permute(2, 0, 1) if planes.ndim == 3 else planes[None]
        planes = F.interpolate(planes[None], size=tuple(self.scale), mode=self.interpolation, antialias=True)[0]
        resized = (planes.permute(1, 2, 0) if crop.ndim == 3 else planes[0]).numpy()
        results['img'] = resized[..., ::-1] if reversed_channels else resized
        results['img_shape'] = results['img'].shape
        return results


@TRANSFORMS.register_module()
class LoadReducedRandomResizedCrop(TorchRandomResizedCrop):
    """Sample the crop before decoding, and decode a JPEG at 1/2, 1/4 or 1/8 if the crop stays larger than the output.

    Replaces ``LoadImageFromFile(imdecode_backend='pillow')`` and ``TorchRandomResizedCrop``, with the same crops. The
    decoder averages blocks of pixels, and the crop is rounded to whole pixels of the reduced image, so pixels change
    slightly: an option for large photos. Crops below twice the output's side, and formats other than JPEG, are decoded
    at full size and give exactly the pixels of the two transforms.

    **Required Keys:** ``img_path``; of a sample with ``img`` alone that image is cropped. **Added Keys:** ``img``,
    ``img_shape``, ``ori_shape``.

    Args:
        scale: Side of the output, or (height, width), in pixels.
        ignore_empty: Return None for an unreadable image, as ``LoadImageFromFile`` does.
        backend_args: Of mmengine's file backend.
        **kwargs: As in ``TorchRandomResizedCrop``.
    """

    @check_arguments
    def __init__(self, scale: Scale, ignore_empty: bool = False, backend_args: dict | None = None, **kwargs) -> None:
        super().__init__(scale, **kwargs)
        self.ignore_empty = ignore_empty
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']``, crop and resize.

        Raises:
            ValueError: With the file, if it is unreadable and ``ignore_empty`` is False.
        """
        if is_loaded(results):
            return super().transform(results)
        try:
            content = read_content(results['img_path'], self.backend_args)
            image = open_image(BytesIO(content))
            transposed = is_transposed(image)
            width, height = image.size[::-1] if transposed else image.size
            # The crop depends on the shape alone.
            box = self.rand_crop_params(np.broadcast_to(np.uint8(0), (height, width)))
            crop = self._decode(content, image, box, (height, width), transposed)
        except Exception as error:  # Pillow raises errors of many types for malformed files
            if self.ignore_empty:
                return None
            raise unreadable(results['img_path'], error) from error
        results['ori_shape'] = (height, width)
        return self._resize(results, crop)

    def _decode(
        self, content: bytes, image: Image.Image, box: tuple, shape: tuple[int, int], transposed: bool
    ) -> np.ndarray:
        """The crop ``box`` (top, left, height, width) of the image, BGR, at the smallest size above the output."""
        top, left, height, width = box
        if image.format != 'JPEG':
            return decode_image(content)[top : top + height, left : left + width]
        # `draft` takes the smallest size that is not below this one.
        least = [max(round(side * out / crop), 1) for side, out, crop in zip(shape, self.scale, box[2:])]
        image.draft('RGB', tuple(least) if transposed else tuple(least[::-1]))
        array = np.array(ImageOps.exif_transpose(image).convert('RGB'))  # a copy: torch needs writable memory
        factors = [side / own for side, own in zip(shape, array.shape)]
        top, left, height, width = (round(value / factor) for value, factor in zip(box, factors * 2))
        return array[top : top + height, left : left + width, ::-1]
