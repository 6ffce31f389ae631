"""Export a classifier, a detector or a backbone to a file that runs without this project.

    python tools/deployment/export.py CONFIG CHECKPOINT --to onnx --out model.onnx
    python tools/deployment/export.py CONFIG CHECKPOINT --to exported --out model.pt2 --normalize
    python tools/deployment/export.py CONFIG CHECKPOINT --to onnx --out backbone.onnx --backbone --stages 1 2 --tokens
    python tools/deployment/export.py CONFIG CHECKPOINT --to onnx --out detector.onnx --size 640 --images photos

CONFIG is a config or a name in mmpretrain.list_models(), as for qbheat_mm.apis.load_backbone. The file takes "images",
float32 (N, 3, H, W) in RGB, any N, normalized with mean and std; with --normalize it does this itself and takes images
in [0, 1]. With --resize it takes any height and width, and resizes to --size itself (bilinear, antialiased).

A classifier returns "logits", a backbone "features_0", "features_1", ... and "tokens". A detector takes one image,
N = 1, and returns "boxes" (K, 4) as x1, y1, x2, y2 in pixels of the images it was given, "scores" (K,) and "labels"
(K,), best first, after the NMS and the thresholds of its test_cfg.

Mean, std, size, outputs and class names are in the file, as JSON under the name "qbheat_mm" in the metadata of an ONNX
model, and in the extra file "qbheat_mm.json" of the others. The file is run and compared with PyTorch, for a detector
with MMDetection's own predictions, before it gets its name; where they differ by more than --tolerance, nothing is
written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from qbheat_mm_cli import add_cfg_options, add_trust

FORMATS = ('onnx', 'torchscript', 'exported')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config with an image classifier or a detector, or with any backbone')
    parser.add_argument('checkpoint', nargs='?', help='its weights; defaults to those that a name stands for')
    parser.add_argument('--to', choices=FORMATS, required=True, help='ONNX, TorchScript, or a program of torch.export')
    parser.add_argument('--out', required=True, help='the file to write')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    parser.add_argument('--stages', type=int, nargs='+', metavar='STAGE', help="the backbone's out_indices")
    parser.add_argument('--tokens', action='store_true', help="the backbone's tokens too (Mobile-Former)")
    parser.add_argument('--size', type=int, nargs='+', default=[224], help='height and width, or one side of both')
    parser.add_argument('--dynamic-size', action='store_true', help='the file takes other sizes too')
    parser.add_argument('--normalize', action='store_true', help='mean and std inside: takes images in [0, 1]')
    parser.add_argument('--resize', action='store_true', help='resizing to --size inside: takes images of any size')
    parser.add_argument('--images', help='an image or a folder to compare on; default random numbers')
    parser.add_argument(
        '--tolerance',
        type=float,
        help='largest difference, 1e-4 relative to the largest value of an output, 0.1 pixels for a detector',
    )
    add_trust(parser)
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if len(args.size) > 2 or min(args.size) < 1:
        parser.error('--size takes a height and a width, or one number, larger than 0')
    if (args.stages or args.tokens) and not args.backbone:
        parser.error('--stages and --tokens need --backbone')
    if args.resize and args.dynamic_size:
        parser.error('--resize computes at one size, --dynamic-size at any: choose one')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # before mmpretrain, which may need its patches
from qbheat_mm.apis.backbone import find_config, load_backbone, normalization
from qbheat_mm.checkpoint import CheckpointError, atomic_write, guard, load_pretrained, read_checkpoint
from qbheat_mm.datasets.image_folder import list_images
from qbheat_mm.engine.launch import merge_options

# isort: split
import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path

import torch
from _runtime import METADATA, check_writable, first_line, load, read_image
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

with contextlib.suppress(ImportError):  # of MMDetection, which only detectors need
    from _detectors import ExportableDetector, distance

MAX_IMAGES = 8  # that outputs are compared on


class ExportError(RuntimeError):
    """A model that cannot be exported, or whose file computes something else."""


class Exported(nn.Module):
    """What the file computes.

    Args:
        model: Takes normalized images; a detector has ``reference``, what its outputs are compared with.
        mean: For RGB in [0, 1].
        std: Likewise.
        bgr: Whether ``model`` takes BGR.
        normalize: Whether the images come in [0, 1].
        resize: Height and width that images of any size are resized to; None takes them as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        bgr: bool,
        normalize: bool,
        resize: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.bgr, self.normalize, self.resize = model, bgr, normalize, resize
        self.register_buffer('mean', torch.tensor(mean)[:, None, None])
        self.register_buffer('std', torch.tensor(std)[:, None, None])

    def prepare(self, images: Tensor) -> Tensor:
        """What the file takes for images in [0, 1]."""
        return images if self.normalize else (images - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs, always a tuple."""
        return self._run(self.model, images)

    @torch.no_grad()
    def reference(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the outputs are compared with."""
        return self._run(getattr(self.model, 'reference', self.model), images)

    def _run(self, model: Callable[[Tensor], Tensor | Sequence[Tensor]], images: Tensor) -> tuple[Tensor, ...]:
        given = images.shape[2:]
        if self.resize:
            images = nn.functional.interpolate(images, self.resize, mode='bilinear', antialias=True)
        if self.normalize:
            images = (images - self.mean) / self.std
        outs = model(images.flip(1) if self.bgr else images)
        outs = (outs,) if isinstance(outs, Tensor) else tuple(outs)
        if self.resize and is_detector(self.model):
            y, x = (side / resized for side, resized in zip(given, self.resize, strict=True))
            boxes, *rest = outs
            outs = (torch.stack([boxes[:, 0] * x, boxes[:, 1] * y, boxes[:, 2] * x, boxes[:, 3] * y], dim=1), *rest)
        return outs


def is_detector(model: nn.Module) -> bool:
    """Whether boxes come first in its outputs."""
    return hasattr(model, 'reference')


def build(args: argparse.Namespace) -> tuple[Exported, dict]:
    """The module to export, and the metadata of the file.

    Raises:
        CheckpointError: If the weights cannot be read, or do not fit.
        ExportError: If the config has no image classifier and no detector.
        ValueError: If the size is none of the detector's.
    """
    cfg, weights = find_config(args.config)
    merge_options(cfg, args.cfg_options)
    checkpoint = args.checkpoint or weights
    checkpoint = guard(checkpoint, args.trust_checkpoint) if checkpoint else None
    mean, std, bgr = normalization(cfg)
    height, width = size = args.size * 2 if len(args.size) == 1 else args.size
    if args.backbone:
        fields = {'out_indices': tuple(args.stages)} if args.stages else {}
        model = load_backbone(cfg, checkpoint, **fields, **({'out_tokens': True} if args.tokens else {}))
        bgr = False  # it turns the channels itself
        names = [f'features_{i}' for i in range(len(model.strides))]
        if args.tokens:
            names[-1] = 'tokens'
        outputs = dict(outputs=names, channels=model.channels, strides=model.strides)
    else:
        model = build_model(cfg, checkpoint, args.config)
        outputs = dict(outputs=['logits'])
        if not isinstance(model, ImageClassifier):
            if args.dynamic_size:
                raise ExportError('A detector is exported for one size: --resize takes images of any size to it.')
            model, outputs = ExportableDetector(model, (height, width)), dict(outputs=['boxes', 'scores', 'labels'])
    model = revert_sync_batchnorm(model).eval().requires_grad_(False)
    metadata = dict(
        qbheat_mm_version=qbheat_mm.__version__,
        config=Path(args.config).stem,
        classes=class_names(checkpoint) if checkpoint and not args.backbone else None,
        color='RGB',
        normalized_inside=args.normalize,
        resized_inside=args.resize,
        mean=mean,
        std=std,
        size=size,
        dynamic_size=args.dynamic_size,
        batch_size=1 if is_detector(model) else None,
        **outputs,
    )
    return Exported(model, mean, std, bgr, args.normalize, (height, width) if args.resize else None), metadata


def build_model(cfg: Config, checkpoint: str | None, name: str) -> nn.Module:
    """The image classifier or the detector of a config, with all of its weights."""
    scope = cfg.get('default_scope', 'mmpretrain')
    if scope == 'mmdet' and importlib.util.find_spec('mmdet') is None:
        raise ExportError(f'"{name}" is the config of a detector and needs MMDetection, which is not installed.')
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    if scope == 'mmdet':
        from mmdet.models import BaseDetector

        fits = isinstance(model, BaseDetector)
    else:
        fits = isinstance(model, ImageClassifier) and model.with_head
    if not fits:
        raise ExportError(
            f'"{name}" is no config of an image classifier with a head, nor of a detector; --backbone exports its '
            'backbone.'
        )
    load_pretrained(model, checkpoint)
    return model


def class_names(checkpoint: str) -> list[str] | None:
    """Those that a run left in its checkpoint."""
    meta = read_checkpoint(checkpoint).get('meta')
    dataset = meta.get('dataset_meta') if isinstance(meta, dict) else None
    classes = dataset.get('classes') if isinstance(dataset, dict) else None
    return [str(each) for each in classes] if classes else None


def trace(model: nn.Module, images: Tensor, shapes: dict) -> torch.export.ExportedProgram:
    """The operations of a model."""
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=(shapes,))


def to_onnx(model: nn.Module, images: Tensor, shapes: dict, metadata: dict) -> bytes:
    """Of opset 18, simplified by onnxscript's optimizer."""
    logging.getLogger('onnxscript').setLevel(logging.ERROR)  # says what its optimizer leaves as it is
    program = torch.onnx.export(
        trace(model, images, shapes),
        dynamo=True,
        opset_version=18,
        input_names=['images'],
        output_names=metadata['outputs'],
        verbose=False,
    )
    for graph in (program.model.graph, *program.model.functions.values()):
        for node in graph:
            node.metadata_props.clear()  # lines of source code with their paths
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    return program.model_proto.SerializeToString()


def to_torchscript(model: nn.Module, images: Tensor, shapes: dict, metadata: dict) -> bytes:
    """By tracing."""
    file = io.BytesIO()
    with torch.no_grad():
        traced = torch.jit.trace(model, images, check_trace=False)
    torch.jit.save(traced, file, _extra_files={f'{METADATA}.json': json.dumps(metadata)})
    return file.getvalue()


def to_exported(model: nn.Module, images: Tensor, shapes: dict, metadata: dict) -> bytes:
    """A program of torch.export."""
    file = io.BytesIO()
    torch.export.save(trace(model, images, shapes), file, extra_files={f'{METADATA}.json': json.dumps(metadata)})
    return file.getvalue()


def export(model: Exported, metadata: dict, format: str) -> bytes:
    """The content of the file.

    Raises:
        ExportError: If PyTorch cannot export the model.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {} if metadata['batch_size'] else {0: dynamic}
    if metadata['dynamic_size'] or metadata['resized_inside']:
        shapes |= {2: dynamic, 3: dynamic}
    # Not the size that is resized to, which would make no difference.
    height, width = (side + 32 * metadata['resized_inside'] for side in metadata['size'])
    images = torch.rand(metadata['batch_size'] or 2, 3, height, width)
    converter = dict(onnx=to_onnx, torchscript=to_torchscript, exported=to_exported)[format]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')  # of tracers, about what the comparison tests
            return converter(model, images, shapes, metadata)
    except ImportError as error:
        raise ExportError(f'{error}: pip install onnx onnxruntime onnxscript') from error
    except Exception as error:  # exporters fail in as many ways as models are written
        raise ExportError(
            f'PyTorch cannot export this model to {format} ({type(error).__name__}: {first_line(error)}).'
        ) from error


def comparison_batches(images: str | None, metadata: dict) -> list[Tensor]:
    """Images in [0, 1], in batches of other sizes than the export saw."""
    height, width = metadata['size']
    if images:
        read = [read_image(path, metadata) for path in list_images(images)[:MAX_IMAGES]]
        if metadata['resized_inside']:
            return [image[None] for image in read]
        stack = torch.stack(read)
    else:
        stack = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    batches = list(stack.split(1)) if metadata['batch_size'] else [stack[:1], stack]
    if metadata['dynamic_size'] or metadata['resized_inside']:
        batches.append(nn.functional.interpolate(batches[-1], (height + 32, 2 * width)))
    return batches


def largest_difference(model: Exported, run: Callable[[Tensor], Sequence[Tensor]], batches: list[Tensor]) -> float:
    """The largest difference of an output from PyTorch's; NaN if there is one in either.

    Of a detector's boxes in pixels, of other outputs relative to the largest value of PyTorch's.

    Raises:
        ExportError: If an output has another shape, the file does not run on a batch, or a detector finds nothing.
    """
    pairs = []
    for batch in map(model.prepare, batches):
        with torch.no_grad():
            try:
                outs = run(batch)
            except Exception as error:  # of three runtimes
                raise ExportError(
                    f'The file does not run on images of {tuple(batch.shape)}: {first_line(error)}'
                ) from error
        pairs.append((outs, model.reference(batch)))
    if is_detector(model.model):
        if not any(len(boxes) for _, (boxes, *_) in pairs):
            raise ExportError('The detector finds nothing in the images, so nothing is compared: name --images.')
        differences = [distance(*each) for each in pairs]
    else:
        differences = [_relative(*each) for outs, expected in pairs for each in zip(outs, expected, strict=True)]
    return torch.tensor(differences).max().item()  # NaN if one is


def _relative(out: Tensor, expected: Tensor) -> float:
    if out.shape != expected.shape:
        raise ExportError(f'An output has the shape {tuple(out.shape)}, in PyTorch {tuple(expected.shape)}.')
    return ((out - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def convert(args: argparse.Namespace) -> tuple[str, float]:
    """Export, compare and write.

    Returns:
        What to say of it, and the largest difference.
    """
    out = Path(args.out)
    check_writable(out)
    model, metadata = build(args)
    batches = comparison_batches(args.images, metadata)
    content = export(model, metadata, args.to)
    difference = largest_difference(model, load(content)[0], batches)
    tolerance, unit = (0.1, 'pixels') if is_detector(model.model) else (1e-4, 'of their largest value')
    if args.tolerance is not None:
        tolerance = args.tolerance
    if not difference <= tolerance:
        raise ExportError(
            f'The outputs differ by {difference:.1e} {unit}, more than --tolerance {tolerance:g}; nothing is written.'
        )
    atomic_write(out, content, replace=False)
    return f'{out}: {len(content) / 2**20:.1f} MiB; outputs differ by at most {difference:.1e} {unit}', difference


def main(argv: Sequence[str] | None = None) -> None:
    """Export as the command line says."""
    args = parse_args(argv)
    try:
        print(convert(args)[0])
    except (CheckpointError, ExportError, OSError, ValueError) as error:
        sys.exit(f'error: {error.strerror if isinstance(error, OSError) and error.strerror else error}')


if __name__ == '__main__':
    main()
