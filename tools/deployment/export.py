"""Export a classifier or a backbone to a file that runs without this project.

    python tools/deployment/export.py CONFIG CHECKPOINT --to onnx --out model.onnx
    python tools/deployment/export.py CONFIG CHECKPOINT --to exported --out model.pt2 --normalize
    python tools/deployment/export.py CONFIG CHECKPOINT --to onnx --out backbone.onnx --backbone --stages 1 2 --tokens

CONFIG is a config or a name in mmpretrain.list_models(), as for qbheat_mm.apis.load_backbone. The file takes "images",
float32 (N, 3, H, W) in RGB, any N, normalized with mean and std; with --normalize it does this itself and takes images
in [0, 1]. A classifier returns "logits", a backbone "features_0", "features_1", ... and "tokens".

Mean, std, size, outputs and class names are in the file, as JSON under the name "qbheat_mm" in the metadata of an ONNX
model, and in the extra file "qbheat_mm.json" of the others. The file is run and compared with PyTorch before it gets
its name; where they differ by more than --tolerance, nothing is written.
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
    parser.add_argument('config', help='a config with an image classifier, or with any backbone')
    parser.add_argument('checkpoint', nargs='?', help='its weights; defaults to those that a name stands for')
    parser.add_argument('--to', choices=FORMATS, required=True, help='ONNX, TorchScript, or a program of torch.export')
    parser.add_argument('--out', required=True, help='the file to write')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    parser.add_argument('--stages', type=int, nargs='+', metavar='STAGE', help="the backbone's out_indices")
    parser.add_argument('--tokens', action='store_true', help="the backbone's tokens too (Mobile-Former)")
    parser.add_argument('--size', type=int, nargs='+', default=[224], help='height and width, or one side of both')
    parser.add_argument('--dynamic-size', action='store_true', help='the file takes other sizes too')
    parser.add_argument('--normalize', action='store_true', help='mean and std inside: takes images in [0, 1]')
    parser.add_argument('--images', help='an image or a folder to compare on; default random numbers')
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest relative difference (%(default)s)')
    add_trust(parser)
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if len(args.size) > 2 or min(args.size) < 1:
        parser.error('--size takes a height and a width, or one number, larger than 0')
    if (args.stages or args.tokens) and not args.backbone:
        parser.error('--stages and --tokens need --backbone')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # before mmpretrain, which may need its patches
from qbheat_mm.apis.backbone import find_config, load_backbone, normalization
from qbheat_mm.checkpoint import (
    CheckpointError,
    atomic_write,
    guard,
    load_pretrained,
    read_checkpoint,
    refuse_existing,
)
from qbheat_mm.datasets.image_folder import list_images
from qbheat_mm.engine.launch import merge_options

# isort: split
import contextlib
import io
import json
import tempfile
import warnings
from pathlib import Path

import torch
from _runtime import METADATA, load
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

MAX_IMAGES = 8  # that outputs are compared on


class ExportError(RuntimeError):
    """A model that cannot be exported, or whose file computes something else."""


class Exported(nn.Module):
    """What the file computes.

    Args:
        model: Takes normalized images.
        mean: For RGB in [0, 1].
        std: Likewise.
        bgr: Whether ``model`` takes BGR.
        normalize: Whether the images come in [0, 1].
    """

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool, normalize: bool
    ) -> None:
        super().__init__()
        self.model, self.bgr, self.normalize = model, bgr, normalize
        self.register_buffer('mean', torch.tensor(mean)[:, None, None])
        self.register_buffer('std', torch.tensor(std)[:, None, None])

    def prepare(self, images: Tensor) -> Tensor:
        """What the file takes for images in [0, 1]."""
        return images if self.normalize else (images - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs, always a tuple."""
        if self.normalize:
            images = (images - self.mean) / self.std
        outs = self.model(images.flip(1) if self.bgr else images)
        return (outs,) if isinstance(outs, Tensor) else tuple(outs)


def build(args: argparse.Namespace) -> tuple[Exported, dict]:
    """The module to export, and the metadata of the file.

    Raises:
        CheckpointError: If the weights cannot be read, or do not fit.
        ExportError: If the config has no image classifier.
    """
    cfg, weights = find_config(args.config)
    merge_options(cfg, args.cfg_options)
    checkpoint = args.checkpoint or weights
    checkpoint = guard(checkpoint, args.trust_checkpoint) if checkpoint else None
    mean, std, bgr = normalization(cfg)
    if args.backbone:
        fields = {'out_indices': tuple(args.stages)} if args.stages else {}
        model = load_backbone(cfg, checkpoint, **fields, **({'out_tokens': True} if args.tokens else {}))
        bgr = False  # it turns the channels itself
        names = [f'features_{i}' for i in range(len(model.strides))]
        if args.tokens:
            names[-1] = 'tokens'
        outputs = dict(outputs=names, channels=model.channels, strides=model.strides)
    else:
        model, outputs = build_classifier(cfg, checkpoint, args.config), dict(outputs=['logits'])
    model = revert_sync_batchnorm(model).eval().requires_grad_(False)
    metadata = dict(
        qbheat_mm_version=qbheat_mm.__version__,
        config=Path(args.config).stem,
        classes=class_names(checkpoint) if checkpoint and not args.backbone else None,
        color='RGB',
        normalized_inside=args.normalize,
        mean=mean,
        std=std,
        size=args.size * 2 if len(args.size) == 1 else args.size,
        dynamic_size=args.dynamic_size,
        **outputs,
    )
    return Exported(model, mean, std, bgr, args.normalize), metadata


def build_classifier(cfg: Config, checkpoint: str | None, name: str) -> ImageClassifier:
    """The image classifier of a config, with all of its weights."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        model = MODELS.build(cfg.model)
    if not isinstance(model, ImageClassifier) or not model.with_head:
        raise ExportError(f'"{name}" is no config of an image classifier with a head; --backbone exports its backbone.')
    load_pretrained(model, checkpoint)
    return model


def class_names(checkpoint: str) -> list[str] | None:
    """Those that a run left in its checkpoint."""
    meta = read_checkpoint(checkpoint).get('meta')
    dataset = meta.get('dataset_meta') if isinstance(meta, dict) else None
    classes = dataset.get('classes') if isinstance(dataset, dict) else None
    return [str(each) for each in classes] if classes else None


def to_onnx(model: nn.Module, images: Tensor, shapes: dict, metadata: dict) -> bytes:
    """Of opset 18, simplified by onnxscript's optimizer."""
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        opset_version=18,
        input_names=['images'],
        output_names=metadata['outputs'],
        dynamic_shapes=(shapes,),
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
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=(shapes,))
    torch.export.save(program, file, extra_files={f'{METADATA}.json': json.dumps(metadata)})
    return file.getvalue()


def export(model: Exported, metadata: dict, format: str) -> bytes:
    """The content of the file.

    Raises:
        ExportError: If PyTorch cannot export the model.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {0: dynamic} | ({2: dynamic, 3: dynamic} if metadata['dynamic_size'] else {})
    images = torch.rand(2, 3, *metadata['size'])
    converter = dict(onnx=to_onnx, torchscript=to_torchscript, exported=to_exported)[format]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')  # of tracers, about what the comparison tests
            return converter(model, images, shapes, metadata)
    except ImportError as error:
        raise ExportError(f'{error}: pip install onnx onnxruntime onnxscript') from error
    except Exception as error:  # exporters fail in as many ways as models are written
        reason = next(iter(str(error).strip().splitlines()), '')
        raise ExportError(
            f'PyTorch cannot export this model to {format} ({type(error).__name__}: {reason}).'
        ) from error


def comparison_batches(images: str | None, metadata: dict) -> list[Tensor]:
    """Images in [0, 1], in batches of other sizes than the export saw."""
    height, width = metadata['size']
    if images:
        from mmcv import imread, imresize

        arrays = [imresize(imread(str(path), channel_order='rgb'), (width, height)) for path in _first(images)]
        stack = torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]) / 255
    else:
        stack = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    batches = [stack[:1], stack]
    if metadata['dynamic_size']:
        batches.append(nn.functional.interpolate(stack, (height + 32, 2 * width)))
    return batches


def _first(images: str) -> list:
    return list_images(images)[:MAX_IMAGES]


def largest_difference(model: Exported, run: Callable[[Tensor], Sequence[Tensor]], batches: list[Tensor]) -> float:
    """The largest difference of an output, relative to the largest value of PyTorch's; NaN if there is one in either.

    Raises:
        ExportError: If an output has another shape, or the file does not run on a batch.
    """
    largest = []
    for batch in map(model.prepare, batches):
        with torch.no_grad():
            expected = model(batch)
            try:
                outs = run(batch)
            except Exception as error:  # of three runtimes
                reason = next(iter(str(error).strip().splitlines()), '')
                raise ExportError(f'The file does not run on images of {tuple(batch.shape)}: {reason}') from error
        for out, wanted in zip(outs, expected, strict=True):
            if out.shape != wanted.shape:
                raise ExportError(f'An output has the shape {tuple(out.shape)}, in PyTorch {tuple(wanted.shape)}.')
            largest.append((out - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    return torch.stack(largest).max().item()  # NaN if one is


def check_writable(out: Path) -> None:
    """Refuse early what would fail after minutes.

    Raises:
        OSError: If the file exists, or its folder cannot be written to.
    """
    refuse_existing(out)
    folder = next(each for each in out.absolute().parents if each.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, f'"{folder}" cannot be written to ({error.strerror}).') from error


def convert(args: argparse.Namespace) -> tuple[int, float]:
    """Export, compare and write.

    Returns:
        The bytes of the file, and the largest relative difference.
    """
    out = Path(args.out)
    check_writable(out)
    model, metadata = build(args)
    batches = comparison_batches(args.images, metadata)
    content = export(model, metadata, args.to)
    difference = largest_difference(model, load(content)[0], batches)
    if not difference <= args.tolerance:
        raise ExportError(
            f'The outputs differ by {difference:.1e} of their largest value, more than --tolerance {args.tolerance:g}; '
            'nothing is written.'
        )
    atomic_write(out, content, replace=False)
    return len(content), difference


def main(argv: Sequence[str] | None = None) -> None:
    """Export as the command line says."""
    args = parse_args(argv)
    try:
        size, difference = convert(args)
    except (CheckpointError, ExportError, OSError, ValueError) as error:
        sys.exit(f'error: {error.strerror if isinstance(error, OSError) and error.strerror else error}')
    print(f'{args.out}: {size / 2**20:.1f} MiB; largest relative difference {difference:.1e}')


if __name__ == '__main__':
    main()
