import math

import numpy as np
import pytest
import torch
from helpers.models import build_qbheat, samples_at
from mmpretrain.models.selfsup import HOGGenerator
from mmpretrain.registry import MODELS

from qbheat_mm.evaluation.functional.reconstruction import predict_arrays


def build(**kwargs):
    return MODELS.build(dict(type='PatchHOGGenerator', **kwargs))


@pytest.mark.parametrize('kwargs', [{}, dict(pool=4), dict(nbins=7, gaussian_window=32)], ids=str)
def test_targets_are_those_of_mmpretrain(kwargs, generator):
    images = torch.randn(10, 3, 224, 224, generator=generator)  # the size that mmpretrain's class is written for
    theirs = HOGGenerator(**kwargs)(images)  # cell by cell: (N, 196, 3 nbins, cells, cells), flattened
    ours = build(**kwargs)(images)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs * math.sqrt(kwargs.get('nbins', 9)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(64, 64), (128, 96)])
def test_targets_of_any_size_have_mean_square_one(size, generator):
    hog = build()(torch.randn(3, 3, *size, generator=generator))
    assert hog.shape == (3, size[0] * size[1] // 256, 108)
    torch.testing.assert_close(hog.square().mean(), torch.tensor(1.0))


def test_a_gradient_falls_into_the_bin_of_its_orientation():
    angle = math.radians(50)
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='ij')
    ramp = (column * math.sin(angle) + row * math.cos(angle)).expand(1, 3, 64, 64)
    for images in (ramp, -ramp):  # an orientation has no sign
        hog = build()(images)[:, 5].view(3, 9, 4)  # away from the mirrored borders
        assert (hog.argmax(1) == int(50 / 20)).all()
        torch.testing.assert_close(hog.amax(1), torch.full((3, 4), 3.0))


def test_brightness_and_contrast_do_not_matter(generator):
    images = torch.randn(2, 3, 64, 64, generator=generator)
    torch.testing.assert_close(build()(3 * images + 1), build()(images), rtol=1e-3, atol=1e-4)


def test_targets_stay_in_float32_under_autocast(generator):
    images = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(build()(images), build()(images))
        assert build()(images).dtype == torch.float32


@pytest.mark.parametrize(
    ('kwargs', 'size', 'message'),
    [
        (dict(patch_size=16, pool=5), 64, 'patch_size=16 is not a multiple of pool=5'),
        (dict(gaussian_window=48), 64, '64 x 64 px do not divide by gaussian_window=48'),
        ({}, 40, '40 x 40 px do not divide by patch_size=16'),
        (dict(nbins=0), 64, 'nbins=0'),
    ],
)
def test_what_does_not_divide_is_refused(kwargs, size, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)(torch.zeros(1, 3, size, size))


def hog_model():
    return build_qbheat(
        target_generator=dict(type='PatchHOGGenerator'), decoder=dict(out_channels=108), head=dict(norm_pix=False)
    )


def test_loss_is_the_mean_square_at_the_masked_positions(generator):
    model, images, samples = hog_model(), torch.randn(2, 3, 64, 64, generator=generator), samples_at([(0, 2), (1, 1)])
    pred, masked_ids = model.predict_masked(images, samples)
    hog = build()(images)
    expected = torch.stack([(p - h[ids]).square().mean() for p, h, ids in zip(pred, hog, masked_ids)]).mean()
    torch.testing.assert_close(model.loss(images, samples)['loss'], expected)


def test_drawings_show_the_target_and_the_prediction_beside_the_image(generator):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    results = predict_arrays(hog_model().eval(), dict(inputs=images, data_samples=samples_at([(0, 0), (2, 2)])))
    for result, area in zip(results, (slice(0, 32), slice(32, 64))):
        target, drawing = result['target'], result['reconstruction']
        assert target.shape == drawing.shape == (64, 64, 3)
        assert np.array_equal(result['original'][area, area], result['visible'][area, area])
        assert target.max() > 0
        assert not np.array_equal(target, drawing)
    assert 0.05 < results[0]['constant_loss'] < 1  # less than the mean square: all values are positive


def test_a_drawn_stroke_lies_along_the_edge():
    image = torch.zeros(1, 3, 64, 64)
    image[..., 28:] = 1  # a vertical edge through the cells of columns 24 to 31
    generator = build()
    drawing = generator.draw(generator(image), (64, 64))[0, 0]
    column = int(drawing.sum(0).argmax())
    assert drawing.shape == (64, 64)
    assert abs(column - 24) <= 4
    assert drawing[:, column].count_nonzero() > 3 * drawing[32].count_nonzero()
