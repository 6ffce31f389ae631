import io
import struct

import cv2
import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from qbheat_mm.datasets.coco import AnnotationError, read_size
from qbheat_mm.datasets.transforms import decode_image


def encode(array: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(4, 16)


def gray_tiff(data: bytes, bits: int, order: str = '<', white_is_zero: bool = False) -> bytes:
    """An uncompressed TIFF of 4 x 16 px."""
    fields = {
        256: 16,
        257: 4,
        258: bits,
        259: 1,
        262: 0 if white_is_zero else 1,
        273: 8,
        277: 1,
        278: 4,
        279: len(data),
    }
    entries = b''.join(struct.pack(f'{order}HHII', tag, 4, 1, value) for tag, value in fields.items())
    directory = struct.pack(f'{order}H', len(fields)) + entries + bytes(4)
    magic = dict(zip('<>', (b'II*\0', b'MM\0*')))[order]
    return magic + struct.pack(f'{order}I', 8 + len(data)) + data + directory


def pack12(values: np.ndarray) -> bytes:
    """Two samples in three bytes."""
    first, second = values.reshape(-1, 2).astype(np.uint16).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (encode(RAMP, 'PNG'), RAMP >> 8),
        (encode(RAMP, 'TIFF'), RAMP >> 8),
        (encode(RAMP, 'JPEG2000'), RAMP >> 8),
        (gray_tiff(RAMP.astype('>u2').tobytes(), 16, '>'), RAMP >> 8),
        (gray_tiff(RAMP.astype('<u2').tobytes(), 16, white_is_zero=True), 255 - (RAMP >> 8)),
        (gray_tiff(pack12(RAMP >> 4), 12), RAMP >> 8),
        (b'P5 16 4 65535\n' + RAMP.astype('>u2').tobytes(), RAMP >> 8),
        (encode((RAMP >> 8).astype(np.uint8), 'TIFF'), RAMP >> 8),
        (encode(RAMP > 30000, 'PNG'), 255 * (RAMP > 30000)),
        (cv2.imencode('.png', np.dstack([RAMP] * 3))[1].tobytes(), RAMP >> 8),
        (cv2.imencode('.tiff', np.dstack([RAMP] * 3))[1].tobytes(), RAMP >> 8),
        (encode(RAMP, 'TIFF', save_all=True, append_images=[Image.new('I;16', (16, 4))]), RAMP >> 8),
    ],
    ids=['png', 'tiff', 'jp2', 'MM', 'white is zero', '12 bits', 'pgm', '8', '1', 'rgb png', 'rgb tiff', 'pages'],
)
def test_the_upper_eight_bits_are_kept(content, expected):
    image = decode_image(content)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize('dtype', ['int32', 'float32'])
def test_values_of_no_known_range_are_refused(dtype):
    with pytest.raises(ValueError, match='of no known range; convert it to 8 or 16 bits'):
        decode_image(encode((np.random.default_rng(0).random((4, 16)) * 2**31).astype(dtype), 'TIFF'))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('deep', [False, True])
def test_the_size_is_that_of_the_loaded_image(tmp_path, kind, deep):
    if deep and kind in ('JPEG', 'WEBP'):
        pytest.skip('the format has 8 bits')
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'image'
    path.write_bytes(encode(RAMP if deep else np.zeros((4, 16, 3), np.uint8), kind, exif=exif))
    assert decode_image(path.read_bytes()).shape == (16, 4, 3)
    assert read_size(path) == (4, 16)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(10))
def test_all_readers_turn_an_image_alike(tmp_path, kind, orientation):
    """Half turns and mirrored ones too; 0 and 9 mean nothing."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }
    expected = turned.get(orientation, pixels)[..., ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'image'
    path.write_bytes(encode(pixels, kind, exif=exif))
    height, width = expected.shape[:2]
    whole = dict(scale=(height, width), crop_ratio_range=(1, 1), aspect_ratio_range=(width / height,) * 2)
    load, reduce = (
        TRANSFORMS.build(each)(dict(img_path=str(path)))['img']
        for each in (dict(type='LoadImage'), dict(type='LoadReducedRandomResizedCrop', **whole))
    )
    assert read_size(path) == (width, height)
    for image in (decode_image(path.read_bytes()), load, reduce):
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 16  # of 255; of an image turned otherwise it is 80


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touched) print\n%%EOF\n'


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (LFS, 'a pointer of git-LFS, not the file itself; run `git lfs pull`'),
        (b'\n<!DOCTYPE html>\n<html><title>403</title>', 'an HTML page, perhaps the error of a server; download'),
        (b'\xef\xbb\xbf<HTML>', 'an HTML page'),
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'a HEIC photo; convert it to JPEG'),
        (b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic', 'a HEIF photo; convert it to JPEG'),
        (b'\0\0\0\x20ftypisom\0\0\2\0', 'a video or sound; extract its frames'),
        (b'<?xml version="1.0"?><svg width="8"/>', r'a vector drawing \(SVG\); export it as PNG'),
        (b'PK\x03\x04\x14', 'a zip archive; unpack it'),
        (b'\xff\x0a\xfa\x1f', 'a JPEG XL image'),
        (bytes(128) + b'DICM', 'a DICOM image'),
        (b'', 'it is empty, or holds zeros alone'),
        (bytes(4000), 'it is empty, or holds zeros alone'),
        (b'noise', 'it is no image of a known format'),
        (EPS, r'a program in PostScript \(EPS\), which is not run'),
    ],
)
def test_a_file_that_is_no_image_is_told_for_what_it_looks_like(tmp_path, content, reason):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(content)
    for transform in (dict(type='LoadImage'), dict(type='LoadReducedRandomResizedCrop', scale=8)):
        with pytest.raises(ValueError, match=rf'photo\.jpg" cannot be read: .*{reason}'):
            TRANSFORMS.build(transform)(dict(img_path=str(path)))
    with pytest.raises(AnnotationError, match=reason):
        read_size(path)


def test_no_program_is_run_for_an_image(tmp_path, monkeypatch):
    """Ghostscript, which Pillow would call."""
    called = tmp_path / 'called'
    (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {called}\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='PostScript'):
        decode_image(EPS)
    assert not called.exists()


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
