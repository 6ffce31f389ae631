"""``mmcv.ops`` gives what mmcv's own C++ code gave, compiled or not; see tests/data/mmcv_ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.mmcv_ops import all_cases, draw, rois, with_gradients
from helpers.models import ROOT

from qbheat_mm import compat

from mmcv import ops  # isort: skip  # after qbheat_mm, which makes it importable

VECTORS = np.load(ROOT / 'tests' / 'data' / 'mmcv_ops' / 'vectors.npz')
CUDA_ONLY = ('roi_pool', 'sigmoid_focal_loss')
CASES = all_cases()


@pytest.mark.parametrize('name', CASES)
def test_results_are_those_of_mmcv(name):
    if compat.has_compiled_ops() and name.startswith(CUDA_ONLY):
        pytest.skip('mmcv has the op for CUDA tensors only')
    found = CASES[name]()
    expected = [VECTORS[f'{name}/{i}'] for i in range(sum(key.startswith(f'{name}/') for key in VECTORS))]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point():
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(one.numpy(), other)


DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))]
OPERATIONS = {
    'roi_align': lambda x: ops.roi_align(x, rois().to(x), (3, 2), 0.25, 2, 'avg', True),
    'roi_align max': lambda x: ops.roi_align(x, rois().to(x), (3, 2), 0.25, 0, 'max', True),
    'roi_pool': lambda x: ops.roi_pool(x, rois().to(x), (3, 2), 0.25),
    'sigmoid_focal_loss': lambda x: ops.sigmoid_focal_loss(
        x.flatten(1), torch.tensor([3, 576], device=x.device), 2.0, 0.25, None, 'none'
    ),
    'deform_conv2d': lambda x: ops.deform_conv2d(x, draw(1, 2, 18, 16, 12).to(x), draw(2, 4, 3, 3, 3).to(x), 1, 1),
    'modulated_deform_conv2d': lambda x: ops.modulated_deform_conv2d(
        x, draw(1, 2, 18, 16, 12).to(x), draw(3, 2, 9, 16, 12, low=0).to(x), draw(2, 4, 3, 3, 3).to(x), None, 1, 1
    ),
}


@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled ops refuse some of these')
@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-5), (torch.float16, 5e-2), (torch.bfloat16, 0.4)])
def test_any_precision_is_near_float32_and_keeps_its_type(name, device, dtype, tolerance):
    image = draw(7, 2, 3, 16, 12)
    expected = with_gradients(OPERATIONS[name], image)
    found = with_gradients(OPERATIONS[name], image.to(device, dtype))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.cpu().float() - other).abs().mean() < tolerance * other.abs().mean()


@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled ops are for float32')
@pytest.mark.parametrize('device', DEVICES)
def test_nms_of_half_precision_boxes_is_that_of_the_same_numbers(device):
    boxes = torch.tensor([[0, 0, 8, 8], [0, 0, 8, 9], [20, 20, 30, 30], [20, 20, 30, 38]], device=device)
    scores = torch.tensor([0.5, 0.25, 0.75, 0.625], device=device)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert ops.nms(boxes.to(dtype), scores.to(dtype), 0.6)[1].tolist() == [2, 3, 0]


@pytest.mark.parametrize('device', DEVICES)
def test_without_boxes_nothing_is_kept(device):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    for kept in (
        ops.nms(boxes, scores, 0.5),
        ops.nms(boxes, scores, 0.5, score_threshold=0.1, max_num=3),
        ops.soft_nms(boxes, scores),
    ):
        assert [each.shape for each in kept] == [(0, 5), (0,)]
        assert kept[1].dtype == torch.long
    assert ops.nms_match(torch.zeros(0, 5, device=device), 0.5) == []


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('mode', ['avg', 'max', 'pool'])
def test_without_rois_the_gradient_is_zero(mode, device):
    if mode == 'pool' and device == 'cpu' and compat.has_compiled_ops():
        pytest.skip('mmcv has the op for CUDA tensors only')
    image = draw(7, 2, 3, 16, 12).to(device).requires_grad_()
    none = torch.zeros(0, 5, device=device)
    pooled = ops.roi_pool(image, none, 2) if mode == 'pool' else ops.roi_align(image, none, 2, 1.0, 0, mode, True)
    assert pooled.shape == (0, 3, 2, 2)
    assert not torch.autograd.grad(pooled.sum(), image)[0].any()


@pytest.mark.skipif(compat.has_compiled_ops(), reason='mmcv has the op for CUDA tensors only')
def test_a_focal_loss_of_nothing_is_zero():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == 0


@pytest.mark.skipif(compat.has_compiled_ops(), reason='mmcv reads beyond the end of the offsets')
def test_offsets_for_fewer_positions_than_the_output_has_are_refused():
    image, weight = draw(1, 1, 3, 6, 6), draw(2, 4, 3, 3, 3)
    with pytest.raises(ValueError, match='Offsets and masks of 3 x 3 positions do not suffice for an output of 6 x 6'):
        ops.modulated_deform_conv2d(image, draw(3, 1, 18, 3, 3), draw(4, 1, 9, 3, 3), weight, None, 1, 1)
