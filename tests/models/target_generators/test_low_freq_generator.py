import math

import pytest
import torch
from helpers.models import build_qbheat, samples_at
from mmpretrain.registry import MODELS

from qbheat_mm.models.utils import gather_tokens, patchify


def build(**kwargs):
    return MODELS.build(dict(type='LowFreqTargetGenerator', **kwargs))


@pytest.mark.parametrize(('cycles', 'stays'), [(4, True), (11, True), (12, False), (30, False)])
def test_waves_up_to_the_cutoff_stay(cycles, stays):
    wave = torch.sin(2 * math.pi * cycles * torch.arange(64) / 64)
    images = torch.stack([wave.expand(64, 64), wave[:, None].expand(64, 64), torch.ones(64, 64)])[None]
    expected = images if stays else images * torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(build()(images), expected, rtol=0, atol=1e-5)  # 0.18 cycles per pixel: 11.5


def test_a_second_time_changes_nothing(generator):
    images = torch.randn(2, 3, 64, 96, generator=generator)
    filtered = build()(images)
    torch.testing.assert_close(build()(filtered), filtered, rtol=0, atol=1e-5)
    assert filtered.square().mean() < 0.5 * images.square().mean()


def test_a_model_predicts_the_pixels_of_the_filtered_image(generator):
    model = build_qbheat(target_generator=dict(type='LowFreqTargetGenerator'))
    images, samples = torch.randn(2, 3, 64, 64, generator=generator), samples_at([(0, 0), (1, 2)])
    pred, masked_ids = model.predict_masked(images, samples)
    patches = gather_tokens(patchify(build()(images), 16), masked_ids)
    torch.testing.assert_close(model.loss(images, samples), model.head.loss(pred, patches))


def test_a_cutoff_of_nothing_is_refused():
    with pytest.raises(ValueError, match='cutoff=0'):
        build(cutoff=0.0)
