"""Running exported files."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
