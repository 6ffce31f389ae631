"""What the tools share: reading, running and writing exported files."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmcv import imread, imresize
from torch import Tensor

from qbheat_mm.checkpoint import refuse_existing

METADATA = 'qbheat_mm'


def format_of(content: bytes) -> str:
    """The format of the content of a file: PyTorch's are zip archives, ONNX is none."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return 'onnx'
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return 'torchscript' if any('/code/' in name for name in archive.namelist()) else 'exported'


def load(content: bytes, threads: int = 0) -> tuple[Callable[[Tensor], Sequence[Tensor]], dict]:
    """A function that runs the content of a file, and its metadata, empty where another tool wrote it.

    Args:
        content: The file, from a source that is trusted.
        threads: Of ONNX Runtime, 0 for its own choice; PyTorch's are set for the whole process.
    """
    format, extra = format_of(content), {f'{METADATA}.json': ''}
    if format == 'onnx':
        return _load_onnx(content, threads)
    if format == 'torchscript':
        run = torch.jit.load(io.BytesIO(content), _extra_files=extra)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the bytes are read-only, as are the weights
            run = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    return run, json.loads(extra[f'{METADATA}.json'] or '{}')


def _load_onnx(content: bytes, threads: int) -> tuple[Callable[[Tensor], Sequence[Tensor]], dict]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    metadata = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, '{}'))
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {name: images.numpy()})], metadata


def read_image(path: str | Path, metadata: dict) -> Tensor:
    """An image (3, H, W), RGB in [0, 1], in the size of a file's metadata, or its own where the file resizes."""
    array = imread(str(path), channel_order='rgb')
    if not metadata.get('resized_inside'):
        height, width = metadata['size']
        array = imresize(array, (width, height))
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def normalize(images: Tensor, metadata: dict) -> Tensor:
    """What a file takes for images in [0, 1]."""
    if metadata['normalized_inside']:
        return images
    mean, std = (torch.tensor(metadata[name])[:, None, None] for name in ('mean', 'std'))
    return (images - mean) / std


def check_writable(out: Path, replace: bool = False) -> None:
    """Refuse early what would fail after minutes.

    Raises:
        OSError: If the file exists and is not to be replaced, or its folder cannot be written to.
    """
    if not replace:
        refuse_existing(out)
    folder = next(each for each in out.absolute().parents if each.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, f'"{folder}" cannot be written to ({error.strerror}).') from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
