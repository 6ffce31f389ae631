"""Exported files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

FORMATS = ('onnx', 'torchscript', 'exported')


def reload(path: Path, format: str) -> tuple[Callable[[Tensor], Sequence[Tensor]], dict]:
    """What a user has who has the file alone: a function of images, and the metadata."""
    if format == 'onnx':
        onnxruntime = pytest.importorskip('onnxruntime')
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        metadata = json.loads(session.get_modelmeta().custom_metadata_map['qbheat_mm'])
        assert [out.name for out in session.get_outputs()] == metadata['outputs']
        return lambda images: [torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})], metadata
    extra = {'qbheat_mm.json': ''}
    if format == 'torchscript':
        run = torch.jit.load(path, _extra_files=extra)
    else:
        run = torch.export.load(path, extra_files=extra).module()
    return run, json.loads(extra['qbheat_mm.json'])


def run_tool(tool: ModuleType, *arguments: object) -> float:
    """The difference that tools/deployment/export.py finds."""
    return tool.convert(tool.parse_args([str(each) for each in arguments]))[1]


def check_refused(tool: ModuleType, arguments: Sequence[str], message: str, folder: Path) -> None:
    """That a tool ends with this error, and leaves the folder as it was."""
    before = sorted(folder.rglob('*'))
    with pytest.raises(SystemExit) as raised:
        tool.main(arguments)
    assert message in str(raised.value)
    assert str(raised.value).startswith('error: ')
    assert sorted(folder.rglob('*')) == before
