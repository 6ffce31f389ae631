"""Calls of ``mmcv.ops`` on random inputs; their results are stored in tests/data/mmcv_ops, by mmcv's own C++ code."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

DETECTIONS = 60


def draw(seed: int, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The same numbers with any version of PyTorch."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def detections(whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes; of ``whole`` boxes many have an IoU of exactly the threshold."""
    corners, sizes = draw(1, DETECTIONS, 2, low=0, high=20), draw(2, DETECTIONS, 2, low=1, high=12)
    if whole:
        corners, sizes = corners.round(), (sizes / 3).ceil()
    labels = torch.arange(DETECTIONS) % 3
    return torch.cat([corners, corners + sizes], dim=1), draw(3, DETECTIONS, low=0), labels


def rois() -> Tensor:
    """RoIs on two images of 64 x 48 px, some partly outside, a thin one and one of a pixel."""
    boxes = torch.cat([draw(4, 5, 2, low=-10, high=40), draw(5, 5, 2, low=40, high=70)], dim=1)
    boxes = torch.cat([boxes, torch.tensor([[3.0, 4.0, 3.5, 60.0], [10.0, 12.0, 11.0, 13.0]])])
    return torch.cat([torch.tensor([0, 1, 0, 1, 0, 1, 0.0])[:, None], boxes], dim=1)


def with_gradients(op: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of a weighted sum of it."""
    inputs = [each.clone().requires_grad_() for each in inputs]
    output = op(*inputs)
    weights = draw(6, *output.shape).to(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def _nms_cases() -> dict[str, Callable[[], list[Tensor]]]:
    from mmcv import ops

    def batched(agnostic: bool, split: int) -> list[Tensor]:
        config = dict(type='nms', iou_threshold=0.4, split_thr=split, max_num=20)
        return list(ops.batched_nms(*detections(False), config, class_agnostic=agnostic))

    cases = {}
    for whole, threshold, offset in product((False, True), (0.3, 0.5, 0.6), (0, 1)):
        boxes, scores, _ = detections(whole)
        cases[f'nms whole={whole} {threshold} offset={offset}'] = lambda b=boxes, s=scores, t=threshold, o=offset: list(
            ops.nms(b, s, t, offset=o)
        )
    boxes, scores, _ = detections(False)
    cases['nms score_threshold max_num'] = lambda: list(ops.nms(boxes, scores, 0.5, score_threshold=0.2, max_num=9))
    for agnostic, split in product((False, True), (10000, 10)):
        cases[f'batched_nms agnostic={agnostic} split={split}'] = lambda a=agnostic, s=split: batched(a, s)
    for method, offset in product(('naive', 'linear', 'gaussian'), (0, 1)):
        cases[f'soft_nms {method} offset={offset}'] = lambda m=method, o=offset: list(
            ops.soft_nms(boxes, scores, 0.3, min_score=0.05, method=m, offset=o)
        )
    dets = torch.cat([boxes, scores[:, None]], dim=1)

    def match() -> list[Tensor]:
        groups = ops.nms_match(dets, 0.4)
        return [torch.cat(groups), torch.tensor([len(group) for group in groups])]

    cases['nms_match'] = match
    return cases


def _roi_cases() -> dict[str, Callable[[], list[Tensor]]]:
    from mmcv import ops

    image = draw(7, 2, 3, 16, 12)
    cases = {}
    for aligned, ratio, mode in product((False, True), (0, 1, 2), ('avg', 'max')):
        cases[f'roi_align aligned={aligned} ratio={ratio} {mode}'] = lambda a=aligned, r=ratio, m=mode: with_gradients(
            lambda features: ops.roi_align(features, rois(), (3, 2), 0.25, r, m, a), image
        )
    for scale in (0.25, 0.1):
        cases[f'roi_pool {scale}'] = lambda s=scale: with_gradients(
            lambda features: ops.roi_pool(features, rois(), (3, 2), s), image
        )
    return cases


def _loss_cases() -> dict[str, Callable[[], list[Tensor]]]:
    from mmcv import ops

    logits = torch.cat([draw(8, 20, 5, low=-6, high=6), draw(9, 4, 5, low=-200, high=200)])
    targets = torch.arange(24) % 6  # 5 is the background
    known = targets.clamp(max=4)  # the background has no weight
    cases = {}
    for gamma, alpha, reduction in ((2.0, 0.25, 'mean'), (1.5, 0.6, 'none'), (0.0, 0.5, 'sum')):
        cases[f'sigmoid_focal_loss {gamma} {alpha} {reduction}'] = lambda g=gamma, a=alpha, r=reduction: with_gradients(
            lambda x: ops.sigmoid_focal_loss(x, targets, g, a, None, r), logits
        )
    cases['sigmoid_focal_loss weighted'] = lambda: with_gradients(
        lambda x: ops.sigmoid_focal_loss(x, known, 2.0, 0.25, draw(10, 5, low=0), 'sum'), logits
    )
    return cases


def _convolution_cases() -> dict[str, Callable[[], list[Tensor]]]:
    from mmcv import ops

    image = draw(11, 2, 4, 5, 4)
    cases = {}
    # stride, padding, dilation, groups, groups of offsets, size of the kernel, size of the output
    for sizes, kernel, output in (
        ((1, 1, 1, 1, 1), (3, 3), (5, 4)),
        ((2, 2, 1, 2, 2), (3, 3), (4, 3)),
        (((2, 1), (1, 2), (1, 2), 2, 4), (3, 2), (3, 6)),
    ):
        *_, groups, offset_groups = sizes
        points = offset_groups * kernel[0] * kernel[1]
        weight, bias = draw(12, 6, 4 // groups, *kernel), draw(13, 6)
        offset = draw(14, 2, 2 * points, *output, low=-3, high=3)
        mask = draw(15, 2, points, *output, low=0)
        cases[f'deform_conv2d {sizes}'] = lambda s=sizes, i=(image, offset, weight): with_gradients(
            lambda x, o, w: ops.deform_conv2d(x, o, w, *s), *i
        )
        cases[f'modulated_deform_conv2d {sizes}'] = lambda s=sizes, i=(image, offset, mask, weight, bias): (
            with_gradients(lambda *x: ops.modulated_deform_conv2d(*x, *s), *i)
        )
        cases[f'modulated_deform_conv2d {sizes} without bias'] = lambda s=sizes, i=(image, offset, mask, weight): (
            with_gradients(lambda *x: ops.modulated_deform_conv2d(*x, None, *s), *i)
        )
    for positions in ((10, 8), (9, 7)):
        together = draw(16, 2, 27, *positions, low=-3, high=3)  # one convolution computes both, as in DyHead

        def of_a_finer_map(x: Tensor, weight: Tensor, together: Tensor) -> Tensor:
            return ops.modulated_deform_conv2d(x, together[:, :18], together[:, 18:].sigmoid(), weight, None, 1, 1)

        cases[f'modulated_deform_conv2d of offsets at {positions}'] = lambda t=together: with_gradients(
            of_a_finer_map, image, draw(12, 6, 4, 3, 3), t
        )
    return cases


def all_cases() -> dict[str, Callable[[], list[Tensor]]]:
    """Functions that return tensors, by name."""
    return _nms_cases() | _roi_cases() | _loss_cases() | _convolution_cases()
