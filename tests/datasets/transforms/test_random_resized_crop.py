import numpy as np
import pytest
from mmcv.transforms import Compose
from PIL import Image

from qbheat_mm.datasets.transforms import LoadReducedRandomResizedCrop, TorchRandomResizedCrop

MODES = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with the spectrum of photos: detail at every scale, with less amplitude at finer scales."""
    rng = np.random.default_rng(seed)
    octaves = (Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (3, 9, 27, 81))
    layers = [np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC)) for octave in octaves]
    return np.average(layers, axis=0, weights=[8, 4, 2, 1]).astype(np.uint8)


def crops(transforms: list[dict], results: dict, count: int = 1, seed: int = 7) -> tuple[list[dict], float]:
    """Results after seeding numpy, and its next random number."""
    pipeline = Compose(transforms)
    np.random.seed(seed)
    return [pipeline(dict(results)) for _ in range(count)], np.random.rand()


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('ratio', [(0.2, 1.0), (0.08, 1.0), (3.0, 4.0)])  # the last always falls back to the center
def test_the_same_seed_gives_mmpretrains_crops(mode, ratio):
    common = dict(scale=(96, 80), crop_ratio_range=ratio, interpolation=mode)
    image = dict(img=smooth(375, 500))
    ours, ours_next = crops([dict(type='TorchRandomResizedCrop', **common)], image, 12)
    stock, stock_next = crops([dict(type='RandomResizedCrop', backend='pillow', **common)], image, 12)
    assert ours_next == stock_next
    difference = np.abs(np.stack([each['img'] for each in ours]).astype(int) - [each['img'] for each in stock])
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.1
    assert ours[0]['img'].shape == (96, 80, 3)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('size', [(370, 151), (261, 162), (90, 300), (300, 90), (64, 64), (237, 138)])
def test_noise_is_resized_as_by_pillow_with_the_horizontal_pass_first(mode, size):
    image = noise(*size)
    crop = TorchRandomResizedCrop(112, mode, crop_ratio_range=(1, 1), aspect_ratio_range=(size[1] / size[0],) * 2)
    ours = crop(dict(img=image))['img']
    passes = Image.fromarray(image).resize((112, size[0]), MODES[mode]).resize((112, 112), MODES[mode])
    assert np.abs(ours.astype(int) - np.asarray(passes)).max() <= 2


def test_reversed_channels_and_gray_give_the_same_pixels():
    image = smooth(60, 80)
    plain, reverse, gray = (
        crops([dict(type='TorchRandomResizedCrop', scale=32)], dict(img=each))[0][0]['img']
        for each in (image, image[..., ::-1], np.ascontiguousarray(image[..., 0]))
    )
    assert np.array_equal(plain, reverse[..., ::-1])
    assert np.array_equal(plain[..., 0], gray)


def test_other_filters_are_refused():
    with pytest.raises(ValueError, match="interpolation='lanczos': Input should be 'bilinear' or 'bicubic'"):
        TorchRandomResizedCrop(224, 'lanczos')


def load(path, scale: int, seed: int, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    """A crop by the reducing loader and the same by the two transforms, which must use the same random numbers."""
    kwargs.update(scale=scale, interpolation='bicubic')
    whole = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    path = dict(img_path=str(path))
    (ours,), ours_next = crops([dict(type='LoadReducedRandomResizedCrop', **kwargs)], path, seed=seed)
    (stock,), stock_next = crops([whole, dict(type='TorchRandomResizedCrop', **kwargs)], path, seed=seed)
    assert ours['ori_shape'] == stock['ori_shape']
    assert ours_next == stock_next
    return ours['img'], stock['img']


@pytest.mark.parametrize(('mode', 'suffix'), [('RGB', '.png'), ('L', '.png'), ('LA', '.png'), ('RGB', '.jpg')])
def test_what_is_not_reduced_is_identical(tmp_path, mode, suffix):
    path = tmp_path / f'image{suffix}'
    Image.fromarray(smooth(150, 200)).convert(mode).save(path)
    for seed in range(4):
        assert np.array_equal(*load(path, 96, seed))


@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_a_large_jpeg_is_decoded_small_and_changes_little(tmp_path, orientation, monkeypatch):
    path = tmp_path / 'image.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(600, 800)).save(path, quality=90, exif=exif)
    decoded = []
    resize = TorchRandomResizedCrop._resize
    monkeypatch.setattr(
        TorchRandomResizedCrop,
        '_resize',
        lambda self, results, crop: decoded.append(crop.shape) or resize(self, results, crop),
    )
    for seed in range(4):
        ours, stock = load(path, 64, seed, crop_ratio_range=(0.3, 1.0))
        assert np.abs(ours.astype(int) - stock).mean() < 5  # another crop: 40
    small, whole = (np.array(decoded[start::2]) for start in (0, 1))
    assert (small[:, :2].min(1) >= 64).all()
    assert (small[:, :2] * 1.9 < whole[:, :2]).all()


def test_an_unreadable_image_is_an_error_or_none(tmp_path):
    path = tmp_path / 'image.jpg'
    Image.fromarray(smooth(60, 80)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    assert LoadReducedRandomResizedCrop(32, ignore_empty=True)(dict(img_path=str(path))) is None
    with pytest.raises(ValueError, match=r'image\.jpg" cannot be read: image file is truncated'):
        LoadReducedRandomResizedCrop(32)(dict(img_path=str(path)))
