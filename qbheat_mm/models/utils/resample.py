"""Augmentations of a batch, each image with its own parameters, without a loop over images on a GPU.

Images are (N, 3, H, W) in BGR with whole numbers from 0 to 255, in uint8 or float. Results agree with Pillow's on uint8
up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (7471 / 65536, 38470 / 65536, 19595 / 65536)  # Pillow's weights of blue, green and red


def crop_images(
    pixels: Tensor,
    shapes: Sequence[tuple[int, int]],
    boxes: Sequence[tuple[int, int, int, int]],
    flips: Sequence[bool],
    size: tuple[int, int],
    mode: str,
) -> Tensor:
    """Crop, resize with antialiasing, and flip whole images of any sizes.

    Args:
        pixels: Bytes of all images (H, W, 3), one after the other.
        shapes: Height and width of each image.
        boxes: Top, left, height and width of each crop.
        flips: Whether a crop is mirrored horizontally.
        size: Height and width of the result.
        mode: ``'bilinear'`` or ``'bicubic'``.

    Returns:
        (N, 3, H, W) of ``size``; uint8 on a CPU, where the bits are those of ``TorchRandomResizedCrop``, and float
        elsewhere.
    """
    if pixels.device.type == 'cpu':  # PyTorch's kernel for one uint8 image is 15 times as fast as products of matrices
        images = pixels.split([3 * height * width for height, width in shapes])
        crops = []
        for image, (height, width), (top, left, rows, columns), flip in zip(images, shapes, boxes, flips):
            crop = image.view(height, width, 3)[top : top + rows, left : left + columns].permute(2, 0, 1)
            crop = F.interpolate(crop[None], size=size, mode=mode, antialias=True)[0]
            crops.append(crop.flip(2) if flip else crop)
        return torch.stack(crops).contiguous()
    return _crop_batch(pixels, shapes, boxes, flips, size, mode)


def _crop_batch(pixels: Tensor, shapes, boxes, flips, size: tuple[int, int], mode: str) -> Tensor:
    """:func:`crop_images` as two products with a matrix for each image, horizontally first as in PyTorch."""
    ends = torch.tensor(shapes).prod(1).cumsum(0)
    numbers = torch.tensor([(*box, width, flip) for box, (_, width), flip in zip(boxes, shapes, flips)])
    numbers = torch.cat([numbers, (ends - torch.tensor(shapes).prod(1))[:, None]], dim=1)
    top, left, rows, columns, width, flip, start = numbers.to(pixels.device, non_blocking=True).T[..., None, None]
    height_max, width_max = (max(box[side] for box in boxes) for side in (2, 3))
    # Pixels beyond a box have the weight 0: any will do.
    row = torch.arange(height_max, device=pixels.device)[:, None].minimum(rows - 1)
    column = torch.arange(width_max, device=pixels.device).minimum(columns - 1)
    places = start + (top + row) * width + left + column  # (N, height_max, width_max)
    whole = pixels.view(-1, 3).index_select(0, places.flatten()).view(*places.shape, 3).permute(0, 3, 1, 2).float()
    horizontal = resampling_matrices(columns, width_max, size[1], mode)
    horizontal = torch.where(flip > 0, horizontal.flip(1), horizontal)
    vertical = resampling_matrices(rows, height_max, size[0], mode)
    return _whole(vertical[:, None] @ _whole(whole @ horizontal[:, None].mT))


def resampling_matrices(lengths: Tensor, total: int, out: int, mode: str) -> Tensor:
    """Matrices that resize signals of different lengths with antialiasing, as Pillow and PyTorch do.

    Args:
        lengths: (N, 1, 1).
        total: Number of values in each signal, of which the first ``length`` are resized.
        out: Number of values to resize them to.
        mode: ``'bilinear'`` or ``'bicubic'``.

    Returns:
        (N, out, total).
    """
    scale = lengths / out
    centers = (torch.arange(out, device=lengths.device)[:, None] + 0.5) * scale
    places = torch.arange(total, device=lengths.device)
    x = ((places + 0.5 - centers) / scale.clamp(min=1)).abs()
    if mode == 'bilinear':
        weights = (1 - x).clamp(min=0)
    else:  # Keys' cubic with a = -1/2
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    weights = weights * (places < lengths)
    return weights / weights.sum(dim=2, keepdim=True)


def jitter_color(images: Tensor, jitters: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """Brightness, contrast, saturation and hue, in the order of each image.

    Args:
        images: (N, 3, H, W), float; changed in place.
        jitters: For each image, the number of an operation (0 to 3 as above) and its factor, in order.
    """
    operations = (_brightness, _contrast, _saturation, _hue)
    for step in range(max(map(len, jitters), default=0)):
        for number, operation in enumerate(operations):
            chosen = [i for i, each in enumerate(jitters) if len(each) > step and each[step][0] == number]
            if chosen:
                factors = torch.tensor([jitters[i][step][1] for i in chosen])
                factors = factors.to(images.device, non_blocking=True)[:, None, None, None]
                _change(images, chosen, lambda some: operation(some, factors))  # noqa: B023  called at once
    return images


def make_gray(images: Tensor, weights: Sequence[Sequence[float] | None]) -> Tensor:
    """A weighted mean of the channels in each image that has weights; ``images`` is changed in place."""
    chosen = [i for i, each in enumerate(weights) if each is not None]
    if not chosen:
        return images
    matrix = torch.tensor([weights[i] for i in chosen]).to(images.device, non_blocking=True)[:, :, None, None]
    return _change(images, chosen, lambda some: (some * matrix).sum(1, keepdim=True).floor().expand_as(some))


def blur(images: Tensor, radii: Sequence[float | None]) -> Tensor:
    """Pillow's Gaussian blur of each image that has a radius, in pixels; ``images`` is changed in place.

    Pillow applies a box filter three times; here its matrix is multiplied with itself instead.
    """
    chosen = [i for i, each in enumerate(radii) if each is not None]
    if not chosen:
        return images
    sigmas = torch.tensor([radii[i] for i in chosen]).to(images.device, non_blocking=True)
    vertical, horizontal = (_blur_matrices(sigmas, side, max(radii[i] for i in chosen)) for side in images.shape[2:])
    return _change(images, chosen, lambda some: _whole(vertical[:, None] @ some @ horizontal[:, None].mT))


def _blur_matrices(sigmas: Tensor, side: int, largest: float) -> Tensor:
    """Matrices (N, side, side) of a blur that repeats the pixels at the border."""
    variance = sigmas**2 / 3  # of each of three passes
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = (1 / (2 * (whole + part) + 1))[:, None, None]
    edge = (1 - (2 * whole + 1)[:, None, None] * inner) / 2
    pad = int(2 * largest) + 2  # no box is wider
    offsets = torch.arange(side + 2 * pad, device=sigmas.device) - pad
    offsets = (offsets - torch.arange(side, device=sigmas.device)[:, None]).abs()
    reach = whole[:, None, None]
    box = torch.where(offsets <= reach, inner, torch.where(offsets <= reach + 1, edge, 0))
    left, middle, right = box.split([pad, side, pad], dim=2)
    middle = middle.clone()
    middle[:, :, 0] += left.sum(2)
    middle[:, :, -1] += right.sum(2)
    return middle @ middle @ middle


def _change(images: Tensor, chosen: list[int], function) -> Tensor:
    """Replace the chosen images by a function of them."""
    if len(chosen) == len(images):
        return images.copy_(function(images))
    index = torch.tensor(chosen).to(images.device, non_blocking=True)
    return images.index_copy_(0, index, function(images.index_select(0, index)))


def _whole(values: Tensor) -> Tensor:
    """Round to the values of a byte."""
    return values.round_().clamp_(0, 255)


def _luma(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True).add_(0.5).floor_()


def _blend(base: Tensor | float, images: Tensor, factors: Tensor) -> Tensor:
    """Pillow's: from ``base`` to the images and beyond, cut off to whole numbers."""
    return (base + factors * (images - base)).clamp_(0, 255).floor_()


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(0.0, images, factors)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    mean = _luma(images).mean((1, 2, 3), keepdim=True).add_(0.5).floor_()
    return _blend(mean, images, factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(_luma(images), images, factors)


def _hue(images: Tensor, factors: Tensor) -> Tensor:
    """Through Pillow's HSV, whose three values are bytes."""
    blue, green, red = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    spread = (value - low).clamp(min=1)
    sector = torch.where(red == value, (green - blue) / spread, 4 + (red - green) / spread)
    sector = torch.where((green == value) & (red != value), 2 + (blue - red) / spread, sector)
    hue = ((sector / 6 + 1) % 1 * 255).floor() * (value > low)
    saturation = ((value - low) / value.clamp(min=1) * 255).floor() / 255
    hue = (hue + (factors[..., 0] * 255).trunc() % 256) % 256
    # Each channel falls from the value by its distance from the hue.
    turn = hue * (6 / 255)
    channels = []
    for place in (4, 2, 0):  # blue, green, red
        distance = ((turn - place + 3) % 6 - 3).abs()
        channels.append(value * (1 - saturation * (distance - 1).clamp(0, 1)))
    return torch.stack(channels, 1).add_(0.5).floor_()
