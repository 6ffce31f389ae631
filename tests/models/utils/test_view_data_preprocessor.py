"""Views made on the device are those of the transforms that make them in the workers."""

import mmcv
import numpy as np
import pytest
import torch
from helpers.models import ROOT
from mmengine.config import Config
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader

from qbheat_mm.datasets.packing import pack_images
from qbheat_mm.datasets.transforms.views import collate_views, draw_views
from qbheat_mm.engine.seeding import seed_generators
from qbheat_mm.models.utils import resample, view_data_preprocessor

PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CONFIGS = dict(qbheat='qbheat/qbheat_mobile-former-52m_1xb128-coslr-12e_imagenette.py')
CONFIGS['mocov2'] = 'mocov2/mocov2_mobile-former-52m_1xb128-coslr-12e_imagenette.py'


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with detail at every scale, in color."""
    rng = np.random.default_rng(seed)
    octaves = (Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (3, 9, 27, 81))
    layers = [np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC)) for octave in octaves]
    return np.average(layers, axis=0, weights=[8, 4, 2, 1]).astype(np.uint8)


@pytest.fixture
def pack(tmp_path):
    (tmp_path / 'source').mkdir()
    for i, size in enumerate([(150, 200), (200, 150), (130, 131), (90, 300), (180, 180), (64, 64)]):
        Image.fromarray(photo(*size, seed=i)).save(tmp_path / f'source/{i}.png')
    return pack_images(tmp_path / 'source', tmp_path / 'pack').folder


def seeded(dataset) -> list:
    samples = []
    for index in range(len(dataset)):
        seed_generators(1, 0, 0, index)
        samples.append(dataset[index])
    return samples


def views_of(kind: str, pack) -> tuple[list, list]:
    """Samples of a config's pipeline, and of the same with its augmentations drawn only."""
    pipeline = Config.fromfile(ROOT / 'configs' / CONFIGS[kind]).train_dataloader.dataset.pipeline
    common = dict(type='PackedImageDataset', data_root=str(pack), with_label=False, pipeline=pipeline)
    return tuple(seeded(DATASETS.build(dict(common, device_crops=each))) for each in (False, True))


@pytest.fixture
def batched(monkeypatch):
    """Take the code for GPUs on a CPU."""
    monkeypatch.setattr(view_data_preprocessor, 'crop_images', resample._crop_batch)


def test_qbheats_views_have_the_same_bits_on_a_cpu(pack):
    made, drawn = views_of('qbheat', pack)
    ours = MODELS.build(dict(type='ViewDataPreprocessor', **PIXELS))(collate_views(drawn))
    batch = dict(inputs=torch.stack([each['inputs'] for each in made]), data_samples=[e['data_samples'] for e in made])
    theirs = MODELS.build(dict(type='SelfSupDataPreprocessor', **PIXELS))(batch)
    assert torch.equal(ours['inputs'], theirs['inputs'])
    for mine, its in zip(ours['data_samples'], theirs['data_samples']):
        assert mine.visible_origin == its.visible_origin
        assert mine.img_path == its.img_path


@pytest.mark.usefixtures('batched')
def test_qbheats_views_differ_by_rounding_on_a_gpu(pack):
    made, drawn = views_of('qbheat', pack)
    ours = MODELS.build(dict(type='ViewDataPreprocessor'))(collate_views(drawn))['inputs']
    difference = (ours - torch.stack([each['inputs'] for each in made]).float()).abs()
    assert difference.max() <= 2
    assert difference.mean() < 0.05
    assert {each['data_samples'].view.get('flip', False) for each in drawn} == {True, False}


@pytest.mark.parametrize('path', ['cpu', 'gpu'])
def test_mocos_views_differ_by_rounding(pack, path, request):
    if path == 'gpu':
        request.getfixturevalue('batched')
    made, drawn = views_of('mocov2', pack)
    ours = MODELS.build(dict(type='ViewDataPreprocessor'))(collate_views(drawn))['inputs']
    assert len(ours) == 2
    kinds = set()
    for number, view in enumerate(ours):
        for image, stock, sample in zip(view, made, drawn):
            difference = (image - stock['inputs'][number].float()).abs()
            assert difference.mean() < 1.5  # of another draw: 20 and more
            assert difference.quantile(0.99) <= 8  # hues in Pillow have 255 steps
            kinds |= sample['data_samples'].views[number].keys()
    assert kinds == {'box', 'size', 'interpolation', 'flip', 'jitter', 'gray', 'blur'}


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [(90, 70), (33, 200)])
def test_crops_of_different_boxes_are_those_of_one_at_a_time(mode, size):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(60, 80), (120, 50), (7, 9)]]
    arguments = (
        torch.from_numpy(np.concatenate([image.ravel() for image in images])),
        [image.shape[:2] for image in images],
        [(0, 0, 60, 80), (13, 5, 100, 31), (2, 3, 1, 2)],
        [False, True, True],
        size,
        mode,
    )
    one, batch = resample.crop_images(*arguments), resample._crop_batch(*arguments)
    assert one.dtype == torch.uint8
    assert one.shape == batch.shape == (3, 3, *size)
    assert (one - batch).abs().max() <= 2
    assert ((one - batch).abs() > 0).float().mean() < 0.1


def of(image: np.ndarray, *functions) -> torch.Tensor:
    """A batch of one."""
    batch = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    for function in functions:
        batch = function(batch)
    return batch[0].permute(1, 2, 0)


@pytest.mark.parametrize('radius', [0.1, 0.5, 1.0, 2.0, 5.5])
def test_blur_is_pillows(radius):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    ours = of(image, lambda batch: resample.blur(batch, [radius]))
    pillow = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    assert np.abs(ours.numpy() - pillow).max() <= 3  # Pillow rounds after each of six passes


@pytest.mark.parametrize(
    ('number', 'operation', 'factor'),
    [
        *((0, mmcv.adjust_brightness, factor) for factor in (0.6, 1.4)),
        *((1, mmcv.adjust_contrast, factor) for factor in (0.6, 1.4)),
        *((2, mmcv.adjust_color, factor) for factor in (0.6, 1.4)),
        *((3, mmcv.adjust_hue, factor) for factor in (-0.1, 0.07)),
    ],
)
def test_each_color_operation_is_mmpretrains(number, operation, factor):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image[0, 0] = image[0, 1] = 7  # gray
    ours = of(image, lambda batch: resample.jitter_color(batch, [[(number, factor)]]))
    difference = np.abs(ours.numpy() - operation(image, factor, backend='pillow'))
    assert (difference <= 1).mean() > 0.99  # a hue at the border of two of its 255 steps moves by up to six levels
    assert difference.max() <= 6


def test_only_chosen_images_change():
    batch = torch.rand(3, 3, 8, 8).mul(255).round()
    for function, value in (
        (resample.jitter_color, [[], [(0, 0.5)], []]),
        (resample.make_gray, [None, (0.1, 0.6, 0.3), None]),
        (resample.blur, [None, 2.0, None]),
    ):
        changed = function(batch.clone(), value)
        assert [torch.equal(mine, its) for mine, its in zip(changed, batch)] == [True, False, True]


def test_batches_without_views_are_taken_as_by_the_base_class():
    data = dict(inputs=torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8), data_samples=None)
    ours, theirs = (
        MODELS.build(dict(type=kind, **PIXELS))(data) for kind in ('ViewDataPreprocessor', 'SelfSupDataPreprocessor')
    )
    assert torch.equal(ours['inputs'], theirs['inputs'])


def test_another_collate_function_is_refused():
    sample = DataSample(metainfo=dict(view=dict(size=(8, 8))))
    with pytest.raises(ValueError, match=r'collate_fn=dict\(type=.collate_views.\)'):
        MODELS.build(dict(type='ViewDataPreprocessor'))(
            dict(inputs=torch.zeros(1, 9, 9, 3, dtype=torch.uint8), data_samples=[sample])
        )


def test_workers_give_the_same_batches(pack):
    pipeline = [dict(type='DrawRandomResizedCrop', scale=32), dict(type='DrawPackInputs')]
    dataset = DATASETS.build(dict(type='PackedImageDataset', data_root=str(pack), with_label=False, pipeline=pipeline))
    batches = [next(iter(DataLoader(dataset, 6, collate_fn=collate_views, num_workers=workers))) for workers in (0, 1)]
    assert torch.equal(batches[0]['inputs'], batches[1]['inputs'])
    assert batches[1]['data_samples'][3].whole_shape == (90, 300)


def test_steps_without_a_counterpart_are_refused_by_name():
    with pytest.raises(ValueError, match='RandAugment cannot be applied on the device'):
        draw_views([dict(type='RandAugment')])
    with pytest.raises(ValueError, match="direction='vertical'"):
        DATASETS.build(
            dict(
                type='PackedImageDataset',
                data_root='any',
                device_crops=True,
                pipeline=[dict(type='RandomFlip', prob=0.5, direction='vertical')],
            )
        )


def test_stock_transforms_have_the_same_counterparts():
    steps = [dict(type='RandomResizedCrop', scale=8, backend='pillow'), dict(type='mmpretrain.PackInputs')]
    assert draw_views(steps) == [dict(type='DrawRandomResizedCrop', scale=8), dict(type='DrawPackInputs')]
