"""Reading images of any kind into eight bits and three channels."""

from __future__ import annotations

import io

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps


def decode_image(content: bytes) -> np.ndarray:
    """Decode a image file, turned as its EXIF orientation says; of an animation, the first image.

    mmcv's Pillow backend cuts 16-bit gray images off at 255, which leaves them white; here they keep their upper
    eight bits, as OpenCV does it. Everything else is mmcv's.

    Args:
        content: The bytes of the file.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: If the values have no known range.
        Exception: Of many types, if the file is broken.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.mode == 'F':
            raise ValueError('its values are floating-point numbers of no known range')
        if image.mode.startswith('I'):
            values = np.asarray(ImageOps.exif_transpose(image))
            gray = (values.clip(0, 2**16 - 1) // 256).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=2)
    return mmcv.imfrombytes(content, backend='pillow')


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """As mmcv's ``LoadImageFromFile``, through Pillow, for images as people have them.

    OpenCV returns half a image for a truncated file without a word, so it is not used.

    **Required Keys:** img_path. **Added Keys:** img, img_shape, ori_shape.

    Args:
        ignore_empty: Return None for a image that cannot be read, so that ``ImageFolderDataset`` skips it.
        backend_args: Of mmengine's file backends.
    """

    def __init__(self, ignore_empty: bool = True, backend_args: dict | None = None) -> None:
        self.ignore_empty = ignore_empty
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        """Add the image (H, W, 3).

        Raises:
            ValueError: With the file, if it cannot be read and is not to be ignored.
        """
        try:
            img = decode_image(fileio.get(results['img_path'], backend_args=self.backend_args))
        except Exception as error:  # broken files make Pillow raise errors of many types
            if self.ignore_empty:
                return None
            raise ValueError(f'The image "{results["img_path"]}" cannot be read: {error}') from error
        return dict(results, img=img, img_shape=img.shape[:2], ori_shape=img.shape[:2])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ignore_empty={self.ignore_empty})'
