"""Loading of images of any mode as uint8 with three channels."""

from __future__ import annotations

import io
from typing import BinaryIO

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps, UnidentifiedImageError

from ...arguments import check_arguments
from ...files import describe_content, read_file
from ...text import printable

ORIENTATION = 0x0112  # the EXIF tag; values from 5 to 8 swap width and height
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF tags


def is_transposed(image: Image.Image) -> bool:
    """Whether loading swaps width and height of an opened image by its EXIF orientation.

    Pillow does so itself when it opens a TIFF.
    """
    return image.format != 'TIFF' and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image as Pillow does.

    Raises:
        ValueError: If it is none, with what it looks like, or is EPS, for which Pillow would run Ghostscript: a program
            in a file that a stranger made.
    """
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        raise ValueError(describe_content(file.read(512)) or 'it is no image of a known format') from None
    if image.format == 'EPS':
        raise ValueError('it is a program in PostScript (EPS), which is not run; export it as PNG')
    return image


def decode_image(content: bytes) -> np.ndarray:
    """Decode an image file, rotated by its EXIF orientation; of several frames or pages, the first.

    Of samples with 9 to 16 bits the upper eight are kept, as in OpenCV; mmcv's Pillow backend would clip gray ones at
    255, which makes them white. Gray images with 32 bits, integer or floating-point, are refused: the range of their
    values is unknown. Everything else is mmcv's.

    Args:
        content: The bytes of the file.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: If the values have no known range; see also :func:`open_image`.
        Exception: Of many types, if the file is malformed.
    """
    with open_image(io.BytesIO(content)) as image:
        if image.mode.startswith(('I', 'F')):
            return np.repeat(_upper_bits(image)[..., None], 3, axis=2)
    return mmcv.imfrombytes(content, backend='pillow')


def _upper_bits(image: Image.Image) -> np.ndarray:
    """The upper eight bits of a gray image, (H, W)."""
    # 'I' holds 32 bits, except that Pillow decodes 16-bit PGM, and in some versions PNG, to it.
    if image.mode == 'F' or (image.mode == 'I' and image.format not in ('PNG', 'PPM')):
        kind = 'floating-point numbers' if image.mode == 'F' else '32-bit integers'
        raise ValueError(f'its values are {kind} of no known range; convert it to 8 or 16 bits')
    tags = getattr(image, 'tag_v2', {})
    values = np.asarray(ImageOps.exif_transpose(image))
    gray = (values >> (tags.get(BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    return 255 - gray if tags.get(PHOTOMETRIC) == 0 else gray  # 0: white is zero


def read_content(path: str, backend_args: dict | None = None) -> bytes:
    """The bytes of an image file, which mmengine's backend reads unless it is a local file.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
    """
    if backend_args is None and '://' not in str(path):
        return read_file(path)
    return fileio.get(path, backend_args=backend_args)


def unreadable(path: str, error: Exception) -> ValueError:
    """The error for an image that a decoder refuses."""
    return ValueError(printable(f'The image "{path}" cannot be read: {error}'))


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
            img = decode_image(read_content(results['img_path'], self.backend_args))
        except Exception as error:  # Pillow raises errors of many types for malformed files
            if self.ignore_empty:
                return None
            raise unreadable(results['img_path'], error) from error
        return dict(results, img=img, img_shape=img.shape[:2], ori_shape=img.shape[:2])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ignore_empty={self.ignore_empty})'
