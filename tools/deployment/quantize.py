"""Quantize an ONNX file of tools/deployment/export.py to 8 bits, and say what that changes.

    python tools/deployment/quantize.py model.onnx --images photos --out model-int8.onnx
    python tools/deployment/quantize.py model.onnx --images photos/train --accuracy photos/val --out model-int8.onnx
    python tools/deployment/quantize.py model.onnx --images photos --dynamic --out model-int8.onnx

Products of features and weights are computed in int8, convolutions with ranges of their inputs from --images, linear
layers with the ranges of each input. Weights are int8 with a scale for each output channel. Convolutions in groups, as
depthwise ones, and products of two features, as in attention, stay in float32; with --dynamic all convolutions do.

Both files then run on images. With --accuracy, class folders named as the classes in the file, the tool prints the
top-1 accuracy of a classifier before and after. Else it prints, on --images, the relative difference of the outputs,
and of a detector how many of its boxes are found again (same label, IoU of 0.5).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='an ONNX file of tools/deployment/export.py')
    parser.add_argument('--images', required=True, help='a folder of images, to calibrate with and to compare on')
    parser.add_argument('--out', required=True, help='the file to write')
    parser.add_argument('--dynamic', action='store_true', help='linear layers alone, without calibration')
    parser.add_argument('--num-images', type=int, default=64, help='to calibrate with, evenly chosen (%(default)s)')
    parser.add_argument('--accuracy', metavar='FOLDER', help='class folders, for the accuracy before and after')
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error('--num-images must be larger than 0')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401 before mmcv, which may need its patches
from qbheat_mm.checkpoint import atomic_write
from qbheat_mm.datasets.image_folder import list_images

# isort: split
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from _runtime import METADATA, check_writable, first_line, format_of, load, normalize, read_image
from torch import Tensor
from torchvision.ops import box_iou

if TYPE_CHECKING:
    from onnx import NodeProto


class QuantizeError(RuntimeError):
    """A file that cannot be quantized."""


def batches(paths: Sequence[Path], metadata: dict) -> Iterator[Tensor]:
    """What the file takes for each image, (1, 3, H, W)."""
    for path in paths:
        yield normalize(read_image(path, metadata)[None], metadata)


def chosen(paths: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of them, evenly over the list, which may be sorted by class."""
    steps = np.linspace(0, len(paths) - 1, min(count, len(paths)))
    return [paths[round(step)] for step in steps]


def quantize(content: bytes, images: Iterator[Tensor] | None, metadata: dict) -> bytes:
    """The content of the quantized file.

    Args:
        content: Of the ONNX file.
        images: What the convolutions are calibrated with; None leaves them as they are.
        metadata: To be written into the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(images, None)
            return None if image is None else {'images': image.numpy()}

    common = dict(weight_type=QuantType.QInt8, per_channel=True)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, 'in.onnx'), Path(folder, 'out.onnx')
        path.write_bytes(content)
        if images is not None:
            quant_pre_process(path, path, skip_symbolic_shape=True)  # BatchNorm into the convolutions
        model = onnx.load(path)
        del model.graph.value_info[:]  # shapes of weights too, which are transposed below
        onnx.save(model, path)
        quantize_dynamic(path, out, op_types_to_quantize=['MatMul', 'Gemm'], **common)
        if images is not None:
            static = dict(
                op_types_to_quantize=['Conv'],
                activation_type=QuantType.QUInt8,
                nodes_to_exclude=[node.name for node in onnx.load(out).graph.node if _is_grouped(node)],
            )
            quantize_static(out, out, Reader(), **static, **common)
        model = onnx.load(out)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(metadata)})
    return model.SerializeToString()


def _is_grouped(node: NodeProto) -> bool:
    """Whether it is a convolution in groups; with several outputs in each, ONNX Runtime is far slower in int8."""
    return node.op_type == 'Conv' and any(field.name == 'group' and field.i > 1 for field in node.attribute)


def accuracy(contents: dict[str, bytes], folder: str, metadata: dict) -> dict[str, float]:
    """The top-1 accuracy of each file in %, on class folders.

    Raises:
        QuantizeError: If the file is no classifier's, or its classes are not those of the folder.
    """
    classes = metadata.get('classes')
    if metadata.get('outputs') != ['logits'] or not classes:
        raise QuantizeError('--accuracy needs the file of a classifier with class names in it; leave it out.')
    paths = [path for path in list_images(folder) if path.parent.name in classes]
    if not paths:
        raise QuantizeError(f'"{folder}" has no images in folders named as the classes of the file: {classes[:3]}, ...')
    labels = [classes.index(path.parent.name) for path in paths]
    runs = {name: load(content)[0] for name, content in contents.items()}
    right = dict.fromkeys(runs, 0)
    for image, label in zip(batches(paths, metadata), labels, strict=True):
        for name, run in runs.items():
            right[name] += int(run(image)[0].argmax()) == label
    return {name: 100 * count / len(paths) for name, count in right.items()}


def agreement(contents: dict[str, bytes], images: Iterator[Tensor], metadata: dict) -> str:
    """What the quantized file computes otherwise, in words."""
    before, after = (load(content)[0] for content in contents.values())
    pairs = [(before(image), after(image)) for image in images]
    if metadata['outputs'][0] == 'boxes':
        found = torch.cat([_found(*each) for each in pairs])
        return f'{int(found.sum())} of {len(found)} boxes are found again'
    differences = [
        (out - expected).norm() / expected.norm() for each in pairs for expected, out in zip(*each, strict=True)
    ]
    return f'the outputs differ by {torch.stack(differences).mean().item():.3f} of their norm'


def _found(expected: Sequence[Tensor], found: Sequence[Tensor], overlap: float = 0.5) -> Tensor:
    """Which of the expected boxes have a box of their label over them."""
    overlaps = box_iou(expected[0], found[0]) >= overlap
    return (overlaps & (expected[2][:, None] == found[2])).any(dim=1)


def read(path: str) -> tuple[bytes, dict]:
    """The content of an ONNX file, and its metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        QuantizeError: If it is another one than tools/deployment/export.py writes to ONNX.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file at "{path}".')
    content = Path(path).read_bytes()
    if format_of(content) != 'onnx':
        raise QuantizeError(f'"{path}" is no ONNX file: export the model with --to onnx.')
    try:
        _, metadata = load(content)
    except Exception as error:  # of ONNX Runtime
        raise QuantizeError(f'"{path}" cannot be loaded ({first_line(error)}).') from error
    if not metadata:
        raise QuantizeError(f'"{path}" does not say how its images are normalized: export it with this project.')
    if metadata.get('quantized'):
        raise QuantizeError(f'"{path}" is quantized already.')
    return content, metadata


def convert(args: argparse.Namespace) -> str:
    """Quantize, compare and write; returns what to say of it."""
    out = Path(args.out)
    check_writable(out)
    content, metadata = read(args.file)
    paths = chosen(list_images(args.images), args.num_images)
    metadata['quantized'] = 'dynamic' if args.dynamic else 'static'
    try:
        quantized = quantize(content, None if args.dynamic else batches(paths, metadata), metadata)
    except Exception as error:  # of ONNX Runtime's tools
        raise QuantizeError(f'"{args.file}" cannot be quantized ({first_line(error)}).') from error
    contents = dict(before=content, after=quantized)
    if args.accuracy:
        right = accuracy(contents, args.accuracy, metadata)
        change = f'accuracy {right["before"]:.1f} -> {right["after"]:.1f} %'
    else:
        change = agreement(contents, batches(paths, metadata), metadata)
    atomic_write(out, quantized, replace=False)
    sizes = ' -> '.join(f'{len(each) / 2**20:.1f}' for each in contents.values())
    return f'{out}: {sizes} MiB; {change}'


def main(argv: Sequence[str] | None = None) -> None:
    """Quantize as the command line says."""
    args = parse_args(argv)
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime's tools recommend what is done here
    try:
        print(convert(args))
    except (OSError, QuantizeError, ValueError) as error:
        sys.exit(f'error: {error.strerror if isinstance(error, OSError) and error.strerror else error}')


if __name__ == '__main__':
    main()
