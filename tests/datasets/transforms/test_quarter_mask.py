from collections import Counter

import numpy as np
import pytest
import torch
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample

from qbheat_mm.datasets import QuarterMask
from qbheat_mm.datasets.transforms.quarter_mask import visible_origins


def origins(mask: QuarterMask, height: int, width: int | None = None, count: int = 400) -> Counter:
    np.random.seed(0)
    image = np.empty((height, width or height, 3), np.uint8)
    return Counter(mask(dict(img=image))['visible_origin'] for _ in range(count))


def test_corner_takes_each_of_four_equally_often():
    counts = origins(TRANSFORMS.build(dict(type='QuarterMask')), 224)
    assert set(counts) == {(0, 0), (0, 7), (7, 0), (7, 7)}
    assert min(counts.values()) > 70


@pytest.mark.parametrize(
    ('visible', 'origin'),
    [('top_left', (0, 0)), ('top_right', (0, 4)), ('bottom_left', (4, 0)), ('bottom_right', (4, 4))],
)
def test_named_corner_stays(visible, origin):
    assert set(origins(QuarterMask(visible=visible), 128, count=20)) == {origin}


def test_center_leaves_the_same_margin_all_around():
    assert set(origins(QuarterMask(visible='center'), 256, count=20)) == {(4, 4)}


def test_random_takes_every_offset_of_an_image_of_any_shape():
    assert len(origins(QuarterMask(visible='random'), 64)) == 9
    assert len(origins(QuarterMask(visible='random'), 64, 32)) == 6


@pytest.mark.parametrize(
    ('kwargs', 'size', 'message'),
    [
        ({}, 200, '200 px.*192 or 224 px would do'),
        ({}, 20, '32 px would do'),
        (dict(patch_size=32), 224, '192 or 256'),
        (dict(visible=['corner', 'center']), 224, 'margin of whole cells.*192 or 256'),
        (dict(visible='center'), 224, 'margin of whole cells.*192 or 256'),
    ],
)
def test_a_size_without_whole_cells_is_refused_with_those_that_would_do(kwargs, size, message):
    with pytest.raises(ValueError, match=message):
        origins(QuarterMask(**kwargs), size, count=1)


def test_of_several_placements_each_is_drawn_equally_often():
    counts = origins(TRANSFORMS.build(dict(type='QuarterMask', visible=['corner', 'center'])), 128, count=800)
    assert set(counts) == {(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)}
    assert 340 < counts[2, 2] < 460


@pytest.mark.parametrize('visible', ['middle', ['corner', 'middle'], []])
def test_unknown_placement_is_refused(visible):
    with pytest.raises(ValueError, match='QuarterMask: visible'):
        QuarterMask(visible=visible)


def test_origins_are_read_from_the_samples_or_missed():
    samples = [DataSample() for _ in range(2)]
    with pytest.raises(KeyError, match='QuarterMask'):
        visible_origins(samples, torch.device('cpu'))
    for sample, origin in zip(samples, [(0, 2), (1, 1)]):
        sample.set_field(origin, 'visible_origin', field_type='metainfo')
    assert visible_origins(samples, torch.device('cpu')).tolist() == [[0, 2], [1, 1]]
