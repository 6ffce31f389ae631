import io

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from qbheat_mm.datasets.transforms import decode_image


def encode(array: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_sixteen_bits_keep_the_upper_eight(kind):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(4, 16)
    image = decode_image(encode(values, kind))
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.repeat((values // 256)[..., None], 3, axis=2))


def test_colors_are_bgr_and_the_image_is_rotated():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = 200, 100, 50
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = decode_image(encode(pixels, 'PNG', exif=exif.tobytes()))
    assert image.shape == (3, 2, 3)
    assert image[0, 1].tolist() == [50, 100, 200]


def test_what_cannot_be_read_is_skipped_or_named(tmp_path):
    (tmp_path / 'float.tif').write_bytes(encode(np.ones((2, 2), dtype=np.float32), 'TIFF'))
    results = dict(img_path=str(tmp_path / 'float.tif'))
    assert TRANSFORMS.build(dict(type='LoadImage', ignore_empty=True))(results) is None
    with pytest.raises(ValueError, match=r'float\.tif" cannot be read: its values are floating-point'):
        TRANSFORMS.build(dict(type='LoadImage'))(results)


@pytest.mark.parametrize('transform', [dict(type='LoadImage'), dict(type='LoadReducedRandomResizedCrop', scale=8)])
@pytest.mark.parametrize('ignore_empty', [False, True])
def test_a_loaded_image_needs_no_file_and_neither_is_an_error(transform, ignore_empty):
    load = TRANSFORMS.build(dict(transform, ignore_empty=ignore_empty))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert load(dict(img=image))['img'].shape == (8, 8, 3)
    with pytest.raises(KeyError, match=r"needs 'img_path', or 'img'.*this one has \['gt_label'\]"):
        load(dict(gt_label=1))
