"""mmpretrain's RandomResizedCrop on faster ground: the same crops, the same filters, a fraction of the time."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from mmengine import fileio
from mmpretrain.datasets import RandomResizedCrop
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps

from .loading import decode_image

ORIENTATION = 0x0112  # the EXIF tag; values from 5 on turn the image by a quarter


@TRANSFORMS.register_module()
class TorchRandomResizedCrop(RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop(backend='pillow')``, resized by torch instead of Pillow.

    The draws are mmpretrain's own: the same seed gives the same crop. Torch's antialiased resizing of bytes on a CPU
    is Pillow's: the same filters, the horizontal pass first, rounded to bytes between the passes. Pixels differ by
    rounding, 2 levels of 255 at most, from Pillow's in that order (Pillow 13 takes the vertical pass first for some
    shapes, which shows in noise, where bicubic overshoots between the passes). It reads numpy arrays as they are,
    which saves the copies into a Pillow image and back, and takes a tenth of the time.

    **Required Keys:** ``img``, uint8, (H, W, 3) or (H, W).

    **Modified Keys:** ``img``, ``img_shape``.

    Args:
        scale: Side of the output, or (height, width), in pixels.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        **kwargs: ``crop_ratio_range``, ``aspect_ratio_range`` and ``max_attempts``, as in mmpretrain.

    Raises:
        ValueError: If ``interpolation`` is another.
    """

    def __init__(self, scale, interpolation: str = 'bilinear', **kwargs) -> None:
        if interpolation not in ('bilinear', 'bicubic'):
            raise ValueError(
                f"{type(self).__name__}: interpolation='{interpolation}' is neither 'bilinear' nor 'bicubic'; "
                "mmpretrain's RandomResizedCrop has more."
            )
        super().__init__(scale, interpolation=interpolation, backend='pillow', **kwargs)

    def transform(self, results: dict) -> dict:
        """Crop and resize ``results['img']``."""
        top, left, height, width = self.rand_crop_params(results['img'])
        return self._resize(results, results['img'][top : top + height, left : left + width])

    def _resize(self, results: dict, crop: np.ndarray) -> dict:
        reversed_channels = crop.strides[-1] < 0  # BGR as a view of RGB, which torch cannot take
        planes = torch.from_numpy(crop[..., ::-1] if reversed_channels else crop)
        planes = planes.permute(2, 0, 1) if planes.ndim == 3 else planes[None]
        planes = F.interpolate(planes[None], size=tuple(self.scale), mode=self.interpolation, antialias=True)[0]
        resized = (planes.permute(1, 2, 0) if crop.ndim == 3 else planes[0]).numpy()
        results['img'] = resized[..., ::-1] if reversed_channels else resized
        results['img_shape'] = results['img'].shape
        return results


@TRANSFORMS.register_module()
class LoadReducedRandomResizedCrop(TorchRandomResizedCrop):
    """Draw the crop before decoding, and decode a JPEG at 1/2, 1/4 or 1/8 where the crop stays above the output.

    In place of ``LoadImageFromFile(imdecode_backend='pillow')`` and ``TorchRandomResizedCrop``. The draws are
    mmpretrain's. A reduced image has been averaged over blocks by the decoder and its crop is rounded to whole pixels
    of it, so pixels change slightly: an option, for large photos. Crops below twice the output's side, and formats
    other than JPEG, are decoded whole and give the very pixels of the two transforms.

    **Required Keys:** ``img_path``.

    **Added Keys:** ``img``, ``img_shape``, ``ori_shape``.

    Args:
        scale: Side of the output, or (height, width), in pixels.
        ignore_empty: Return None for a image that cannot be read, as ``LoadImageFromFile`` does.
        backend_args: Of mmengine's file backend.
        **kwargs: As in ``TorchRandomResizedCrop``.
    """

    def __init__(self, scale, ignore_empty: bool = False, backend_args: dict | None = None, **kwargs) -> None:
        super().__init__(scale, **kwargs)
        self.ignore_empty = ignore_empty
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        """Read ``results['img_path']``, crop and resize."""
        try:
            content = fileio.get(results['img_path'], backend_args=self.backend_args)
            image = Image.open(BytesIO(content))
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            width, height = image.size[::-1] if turned else image.size
            # No pixels are looked at for the draw, but their number.
            box = self.rand_crop_params(np.broadcast_to(np.uint8(0), (height, width)))
            crop = self._decode(content, image, box, (height, width), turned)
        except Exception:
            if self.ignore_empty:
                return None
            raise
        results['ori_shape'] = (height, width)
        return self._resize(results, crop)

    def _decode(
        self, content: bytes, image: Image.Image, box: tuple, shape: tuple[int, int], turned: bool
    ) -> np.ndarray:
        """The crop ``box`` (top, left, height, width) of the image, BGR, at the least size above the output."""
        top, left, height, width = box
        if image.format != 'JPEG':
            return decode_image(content)[top : top + height, left : left + width]
        # `draft` takes the smallest size that is no less than this one.
        least = [max(round(side * out / crop), 1) for side, out, crop in zip(shape, self.scale, box[2:])]
        image.draft('RGB', tuple(least) if turned else tuple(least[::-1]))
        array = np.array(ImageOps.exif_transpose(image).convert('RGB'))  # torch wants memory that it may write to
        factors = [side / own for side, own in zip(shape, array.shape)]
        top, left, height, width = (round(value / factor) for value, factor in zip(box, factors * 2))
        return array[top : top + height, left : left + width, ::-1]
