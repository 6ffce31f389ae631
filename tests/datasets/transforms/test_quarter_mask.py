from collections import Counter

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS

from qbheat_mm.datasets import QuarterMask


def draws(mask: QuarterMask, count: int = 400) -> Counter:
    np.random.seed(0)
    return Counter(mask(dict())['visible_origin'] for _ in range(count))


def test_corner_takes_each_of_four_equally_often():
    counts = draws(TRANSFORMS.build(dict(type='QuarterMask', input_size=224)))
    assert set(counts) == {(0, 0), (0, 7), (7, 0), (7, 7)}
    assert min(counts.values()) > 70


@pytest.mark.parametrize(
    ('visible', 'origin'),
    [('top_left', (0, 0)), ('top_right', (0, 4)), ('bottom_left', (4, 0)), ('bottom_right', (4, 4))],
)
def test_named_corner_stays(visible, origin):
    assert set(draws(QuarterMask(128, visible=visible), 20)) == {origin}


def test_center_leaves_the_same_margin_all_around():
    assert set(draws(QuarterMask(256, visible='center'), 20)) == {(4, 4)}


def test_random_takes_every_offset():
    assert len(draws(QuarterMask(64, visible='random'))) == 9


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(input_size=200), '192 or 224 would do'),
        (dict(input_size=224, stride=32), '192 or 256'),
        (dict(input_size=224, visible='center'), '192 or 256'),
        (dict(input_size=224, visible='middle'), "visible='middle'"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QuarterMask(**kwargs)
