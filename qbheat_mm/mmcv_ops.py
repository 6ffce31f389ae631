"""The ops of mmcv's compiled extension that detectors use, through torchvision and PyTorch.

:func:`qbheat_mm.compat.provide_mmcv_ops` puts them where the extension is absent. Names, arguments and results are the
extension's: most ops write into tensors that the caller allocated. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softnms',
]
# What runs on what, as tools/misc/check_env.py prints it.
FAMILIES = dict(
    torchvision=('nms', 'batched_nms', 'RoIAlign', 'DeformConv2d', 'ModulatedDeformConv2d'),
    PyTorch=(
        'soft_nms',
        'nms_match',
        'RoIPool',
        'sigmoid_focal_loss',
        'MultiScaleDeformableAttention',
    ),
)
_TINY = torch.finfo(torch.float32).tiny  # FLT_MIN, at which the focal loss of mmcv cuts off


def _single(*tensors: Tensor) -> list[Tensor]:
    """Float32, except for float64."""
    return [each if each.dtype == torch.float64 else each.float() for each in tensors]


def _iou_with(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:
    """IoU of one box with others, in the extension's order of operations."""
    sizes = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]) + offset).clamp(min=0)
    intersection = sizes.prod(dim=1)
    area, areas = ((each[..., 2:] - each[..., :2] + offset).prod(dim=-1) for each in (box, boxes))
    return intersection / (area + areas - intersection)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes to keep, by falling score."""
    boxes, scores = _single(boxes, scores)
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # The extension compares with a float32: without this, an IoU of 0.6 would be larger than a threshold of 0.6.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(corners, scores, threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Write boxes with decayed scores to ``dets``, best first, and return their indices.

    Args:
        method: 0 discards overlapping boxes, 1 decays their scores linearly, 2 as a Gaussian.
    """
    boxes, scores = _single(boxes, scores)
    left = torch.arange(len(boxes))
    kept = []
    while len(left):
        best = scores[left].argmax()
        index = left[best]
        dets[len(kept)] = torch.cat([boxes[index], scores[index, None]])
        kept.append(index)
        left = torch.cat([left[:best], left[best + 1 :]])
        iou = _iou_with(boxes[index], boxes[left], offset)
        if method == 2:
            weight = torch.exp(-(iou**2) / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0.0, 1.0)
        scores = scores.index_copy(0, left, scores[left] * weight)
        left = left[~(scores[left] < min_score)]
    return torch.stack(kept) if kept else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of a box that NMS keeps and the boxes that it suppresses."""
    order = dets[:, 4].argsort(descending=True)
    groups = []
    while len(order):
        first, rest = order[0], order[1:]
        suppressed = _iou_with(dets[first, :4], dets[rest, :4]) >= iou_threshold
        groups.append([first.item(), *rest[suppressed].tolist()])
        order = rest[~suppressed]
    return groups


def _sample_grids(
    rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Indices of the RoIs that have (rows, columns) of samples in each bin."""
    if sampling_ratio > 0:
        yield torch.arange(len(rois), device=rois.device), (sampling_ratio, sampling_ratio)
        return
    shift = 0.5 if aligned else 0.0
    sizes = (rois[:, 3:] * spatial_scale - shift) - (rois[:, 1:3] * spatial_scale - shift)
    sizes = sizes if aligned else sizes.clamp(min=1)
    counts = (sizes.flip(1) / rois.new_tensor(bins)).ceil().long()
    for grid in counts.unique(dim=0):
        if grid.min() > 0:  # an RoI of no size has no samples, and its output remains zero
            yield (counts == grid).all(dim=1).nonzero().flatten(), tuple(grid.tolist())


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign into ``output``.

    Args:
        argmax_y, argmax_x: Where ``pool_mode`` is the maximum, they receive the row and the column of the largest
            sample among all samples of its RoI (the extension: its coordinates).
        pool_mode: 0 takes the maximum of a bin's samples, 1 the mean.
    """
    input, rois = _single(input, rois)
    align = torch.ops.torchvision.roi_align
    if pool_mode == 1:
        output.copy_(align(input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))
        return
    for index, (rows, columns) in _sample_grids(
        rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
    ):
        height, width = aligned_height * rows, aligned_width * columns
        samples = align(input, rois[index], spatial_scale, height, width, 1, aligned)
        values, places = F.max_pool2d(samples, (rows, columns), return_indices=True)
        output[index] = values.to(output.dtype)
        argmax_y[index] = (places // width).to(argmax_y.dtype)
        argmax_x[index] = (places % width).to(argmax_x.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` into ``grad_input``."""
    grad_output, rois, total = _single(grad_output, rois, torch.zeros_like(grad_input))

    def add(grad: Tensor, rois: Tensor, ratio: int) -> None:
        total.add_(
            torch.ops.torchvision._roi_align_backward(
                grad.contiguous(), rois, spatial_scale, *grad.shape[2:], *total.shape, ratio, aligned
            )
        )

    if pool_mode == 1:
        add(grad_output, rois, sampling_ratio)
    else:
        for index, (rows, columns) in _sample_grids(
            rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
        ):
            width = aligned_width * columns
            places = argmax_y[index].long() * width + argmax_x[index].long()
            add(F.max_unpool2d(grad_output[index], places, (rows, columns)), rois[index], 1)
    grad_input.copy_(total)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of each bin into ``output``, and its place into ``argmax``, -1 in an empty bin.

    torchvision's op rounds the RoI to whole pixels; mmcv's rounds the bins outwards.
    """
    input, rois = _single(input, rois)
    argmax.fill_(-1)
    corners = torch.cat([rois[:, 1:3], rois[:, 3:] + 1], dim=1) * spatial_scale
    for i, (x1, y1, x2, y2) in enumerate(corners):
        if x2 <= x1 or y2 <= y1:
            continue
        image = input[int(rois[i, 0])]
        # the maximum over the columns of each bin, then over its rows; no bin sees what is outside of it
        in_columns, in_rows = (
            _in_bins(start, end, count, size)
            for start, end, count, size in (
                (x1, x2, pooled_width, image.shape[2]),
                (y1, y2, pooled_height, image.shape[1]),
            )
        )
        values, columns = image[:, :, None].masked_fill(~in_columns, -torch.inf).max(dim=3)
        values, rows = values[:, None].masked_fill(~in_rows[:, :, None], -torch.inf).max(dim=2)
        places = rows * image.shape[2] + columns.gather(1, rows)
        empty = ~(in_rows.any(dim=1)[:, None] & in_columns.any(dim=1))
        output[i] = values.masked_fill(empty, 0).to(output.dtype)
        argmax[i] = places.masked_fill(empty, -1).to(argmax.dtype)


def _in_bins(start: Tensor, end: Tensor, count: int, size: int) -> Tensor:
    """Which of ``size`` positions each of ``count`` bins contains."""
    bins = torch.arange(count, device=start.device)
    length = (end - start) / count
    first, last = (bins * length + start).floor(), ((bins + 1) * length + start).ceil()
    positions = torch.arange(size, device=start.device)
    return (positions >= first[:, None]) & (positions < last[:, None])


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`roi_pool_forward` into ``grad_input``."""
    _, channels, height, width = grad_input.shape
    planes = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    places = planes[:, :, None, None] * (height * width) + argmax
    pooled = argmax >= 0
    (total,) = _single(torch.zeros_like(grad_input))
    total.view(-1).index_add_(0, places[pooled], grad_output[pooled].to(total.dtype))
    grad_input.copy_(total)


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """Probabilities, logarithms of them and of their complements, and the weights of positives and negatives."""
    input, weight = _single(input, weight)
    p = input.sigmoid()
    positive = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(p.dtype)
    of_row = weight[target][:, None] if len(weight) else 1.0
    logs = p.clamp(min=_TINY).log(), (1 - p).clamp(min=_TINY).log()
    return p, *logs, positive * alpha * of_row, (1 - positive) * (1 - alpha) * of_row


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of each logit into ``output``; a target that is no class, as of the background, makes all negative."""
    p, log_p, log_rest, positive, negative = _focal_terms(input, target, weight, alpha)
    output.copy_(-positive * (1 - p) ** gamma * log_p - negative * p**gamma * log_rest)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` into ``grad_input``."""
    p, log_p, log_rest, positive, negative = _focal_terms(input, target, weight, alpha)
    of_positive = (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    of_negative = p**gamma * (gamma * (1 - p) * log_rest - p)
    grad_input.copy_(-positive * of_positive - negative * of_negative)


def _deform_conv_arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, **options: int
) -> tuple:
    """Arguments of torchvision's op, from mmcv's names for them in both versions of the convolution."""
    use_mask = mask is not None
    tensors = _single(
        input,
        weight,
        offset,
        mask if use_mask else input.new_zeros(len(input), 1),
        input.new_zeros(len(weight)) if bias is None else bias,
    )
    names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')
    return *tensors, *(options[name] for name in names), use_mask


def _version_1(dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int, **options: int) -> dict:
    """Options of version 1 under the names of version 2."""
    sizes = dict(stride_h=dH, stride_w=dW, pad_h=padH, pad_w=padW, dilation_h=dilationH, dilation_w=dilationW)
    return sizes | options


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **options: int
) -> None:
    """Deformable convolution, version 1, into ``output``; the buffers ``columns`` and ``ones`` are not used."""
    arguments = _deform_conv_arguments(input, weight, offset, None, None, **_version_1(**options))
    output.copy_(torch.ops.torchvision.deform_conv2d(*arguments))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` into ``grad_input`` and ``grad_offset``."""
    arguments = _deform_conv_arguments(input, weight, offset, None, None, **_version_1(**options))
    grads = torch.ops.torchvision._deform_conv2d_backward(*_single(grad_output), *arguments)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **options: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` into ``grad_weight``."""
    arguments = _deform_conv_arguments(input, grad_weight, offset, None, None, **_version_1(**options))
    grads = torch.ops.torchvision._deform_conv2d_backward(*_single(grad_output), *arguments)
    grad_weight.copy_(grads[1] * scale)


def _first(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Offsets or masks (N, C, H, W) as the extension reads them for an output of another size.

    It reads the first C * height * width numbers of each image, whatever H and W are. DyHead relies on this: it passes
    the offsets of one level to the convolution of the next, which has a quarter of the positions.

    Raises:
        ValueError: If there are fewer positions than the output has; the extension reads beyond the end.
    """
    channels, (height, width) = values.shape[1], shape[-2:]
    if values.shape[2] * values.shape[3] < height * width:
        raise ValueError(
            f'Offsets and masks of {values.shape[2]} x {values.shape[3]} positions do not suffice for an output of '
            f'{height} x {width}; compute them at the size of the output.'
        )
    return values.flatten(1)[:, : channels * height * width].reshape(-1, channels, height, width)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Deformable convolution, version 2, into ``output``; the buffers ``columns`` and ``ones`` are not used."""
    offset, mask = (_first(each, output.shape) for each in (offset, mask))
    arguments = _deform_conv_arguments(input, weight, offset, mask, bias if with_bias else None, **options)
    output.copy_(torch.ops.torchvision.deform_conv2d(*arguments))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`, each into its tensor."""
    offset, mask = (_first(each, grad_output.shape) for each in (offset, mask))
    arguments = _deform_conv_arguments(input, weight, offset, mask, bias if with_bias else None, **options)
    grads = torch.ops.torchvision._deform_conv2d_backward(*_single(grad_output), *arguments)
    targets = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for target, grad in zip(targets[: 5 if with_bias else 4], grads, strict=False):
        if target.shape != grad.shape:  # of offsets or masks that were not read
            unread = target[0].numel() - grad[0].numel()
            grad = F.pad(grad.flatten(1), (0, unread)).reshape(target.shape)
        target.copy_(grad)
