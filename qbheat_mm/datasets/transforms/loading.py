"""Loading of images of any mode as uint8 with three channels."""

from __future__ import annotations

import io

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps

from ...arguments import check_arguments

ORIENTATION = 0x0112  # the EXIF tag; values from 5 swap width and height


def is_transposed(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    return image.getexif().get(ORIENTATION, 1) >= 5


def decode_image(content: bytes) -> np.ndarray:
    """Decode an image file, rotated by its EXIF orientation; of an animation, the first frame.

    16-bit gray images keep their upper eight bits, as in OpenCV; mmcv's Pillow backend would clip them at 255, which
    makes them white. Everything else is mmcv's.

    Args:
        content: The bytes of the file.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: If the values have no known range.
        Exception: Of many types, if the file is malformed.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.mode == 'F':
            raise ValueError('its values are floating-point numbers of no known range')
        if image.mode.startswith('I'):
            values = np.asarray(ImageOps.exif_transpose(image))
            gray = (values.clip(0, 2**16 - 1) // 256).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=2)
    return mmcv.imfrombytes(content, backend='pillow')


def is_loaded(results: dict) -> bool:
    """Whether there is an image and no file: the inferencers of mmpretrain load images themselves.

    Raises:
        KeyError: If there is neither.
    """
    if 'img_path' not in results and 'img' not in results:
        raise KeyError(f"A sample needs 'img_path', or 'img' if it is loaded already; this one has {sorted(results)}.")
    return 'img_path' not in results


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """mmcv's ``LoadImageFromFile`` with :func:`decode_image`: OpenCV silently returns half of a truncated image.

    **Required Keys:** img_path; a sample with img alone stays as it is. **Added Keys:** img, img_shape, ori_shape.

    Args:
        ignore_empty: Return None for an unreadable image, so that ``ImageFolderDataset`` skips it in training.
        backend_args: Of mmengine's file backends.
    """

    @check_arguments
    def __init__(self, ignore_empty: bool = False, backend_args: dict | None = None) -> None:
        self.ignore_empty = ignore_empty
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        """Add the image (H, W, 3).

        Raises:
            KeyError: If there is neither a file nor an image.
            ValueError: With the file, if it is unreadable and ``ignore_empty`` is False.
        """
        if is_loaded(results):
            return results
        try:
            img = decode_image(fileio.get(results['img_path'], backend_args=self.backend_args))
        except Exception as error:  # Pillow raises errors of many types for malformed files
            if self.ignore_empty:
                return None
            raise ValueError(f'The image "{results["img_path"]}" cannot be read: {error}') from error
        return dict(results, img=img, img_shape=img.shape[:2], ori_shape=img.shape[:2])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ignore_empty={self.ignore_empty})'
