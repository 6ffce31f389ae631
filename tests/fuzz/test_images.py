"""Folders of unusual and malformed images: training reads the readable ones, and skips and counts the others."""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fuzzing import FUZZ
from helpers.models import PIPELINE, build_qbheat, qbheat_config, write_images
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.dataset import default_collate
from PIL import Image

from qbheat_mm.apis import QBHeatInferencer
from qbheat_mm.datasets import ImageFolderDataset

pytestmark = pytest.mark.fuzz

PIPELINE = [dict(type='LoadImage', ignore_empty=True), *PIPELINE[1:]]
MODES = {
    'PNG': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
    'JPEG': ('L', 'RGB', 'CMYK'),
    'TIFF': ('1', 'L', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'I;16'),
    'WEBP': ('RGB', 'RGBA'),
    'BMP': ('1', 'L', 'P', 'RGB'),
    'GIF': ('P', 'L'),
}
SUFFIXES = ('.jpg', '.png', '.webp', '.bmp', '.tif', '.PNG')
SIZES = st.sampled_from([(1, 1), (1, 3), (2, 1), (7, 5), (64, 64), (90, 40), (20000, 2), (2, 20000)])


def draw_pixels(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0])
    if mode == 'I;16':
        return Image.fromarray(rng.integers(0, 2**16, shape, dtype=np.uint16))
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
    if mode in ('1', 'P', 'L'):
        return Image.fromarray(pixels[..., 0]).convert(mode)
    return Image.frombytes(mode, size, pixels.tobytes())


@st.composite
def valid_files(draw) -> bytes:
    """An image of some format, mode and size, possibly animated or rotated."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode, size, seed = draw(st.sampled_from(MODES[kind])), draw(SIZES), draw(st.integers(0, 9))
    if kind == 'WEBP' and max(size) > 16383:
        size = (16000, 2)
    image, options = draw_pixels(mode, size, seed), {}
    if kind in ('GIF', 'WEBP', 'PNG') and draw(st.booleans()):
        options = dict(save_all=True, append_images=[draw_pixels(mode, size, seed + 1)])
    elif kind in ('JPEG', 'PNG', 'WEBP'):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))  # the orientation; 0 and 9 mean nothing
        options = dict(exif=exif.tobytes())
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@st.composite
def malformed_files(draw) -> bytes:
    """Nothing, noise, text, or an image cut short or with bytes changed."""
    content = bytearray(draw(valid_files()))
    how = draw(st.sampled_from(['empty', 'zeros', 'noise', 'text', 'cut', 'changed', 'shifted']))
    if how == 'cut':
        return bytes(content[: draw(st.integers(0, len(content) - 1))])
    if how == 'changed':
        for _ in range(draw(st.integers(1, 8))):
            content[draw(st.integers(0, min(len(content), 400) - 1))] = draw(st.integers(0, 255))
        return bytes(content)
    return {
        'empty': b'',
        'zeros': bytes(len(content)),
        'noise': draw(st.binary(max_size=200)),
        'text': b'<html>404 Not Found</html>',
        'shifted': b'\xef\xbb\xbf' + bytes(content),
    }[how]


NAMED = st.tuples(st.booleans(), st.sampled_from(SUFFIXES)).flatmap(
    lambda pair: st.tuples(valid_files() if pair[0] else malformed_files(), st.just(pair[1]), st.just(pair[0]))
)


@pytest.fixture(scope='module')
def model():
    return build_qbheat()


@pytest.fixture(scope='module')
def inferencer():
    return QBHeatInferencer(Config(dict(model=qbheat_config())), device='cpu', img_size=64)


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp('good'), 1)[0]


@FUZZ
@given(files=st.lists(NAMED, min_size=1, max_size=3))
def test_a_folder_trains_and_skips_with_a_count(model, good, files):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copy(good, folder / 'good.jpg')
        for i, (content, suffix, _) in enumerate(files):
            (folder / f'{i}{suffix}').write_bytes(content)
        valid = {str(folder / f'{i}{suffix}') for i, (_, suffix, readable) in enumerate(files) if readable}
        options = dict(data_root=str(folder), with_label=False, pipeline=PIPELINE, serialize_data=False)
        dataset = ImageFolderDataset(**options)
        assert len(dataset) == len(files) + 1
        batch = default_collate([dataset[i] for i in range(len(dataset))])
        skipped = dataset.skipped_images()
        assert not set(skipped) & valid  # unusual, but valid files are read
        assert len(skipped) <= len(files) - len(valid)
        data = model.data_preprocessor(batch, True)
        assert data['inputs'].shape == (len(dataset), 3, 64, 64)
        losses = model.loss(**data)
        assert torch.isfinite(losses['loss'])

        strict = ImageFolderDataset(**options, test_mode=True)
        for i in range(len(strict)):
            path = strict.get_data_info(i)['img_path']
            try:
                strict[i]
                assert path not in skipped
            except RuntimeError as error:
                assert path in skipped and Path(path).name in str(error)  # noqa: PT017, PT018


@FUZZ
@given(file=NAMED)
def test_the_inferencer_reconstructs_or_names_the_file(inferencer, file):
    content, suffix, readable = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'one{suffix}'
        path.write_bytes(content)
        try:
            (result,) = inferencer.reconstruct(path)
        except ValueError as error:
            assert not readable and path.name in str(error)  # noqa: PT017, PT018
        else:
            assert result['reconstruction'].shape == (64, 64, 3)
            assert np.isfinite(result['masked_loss'])
