"""Files of weights to share: plain tensors, without optimizer, log curves or config text."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..version import __version__
from .atomic import atomic_write
from .loading import CheckpointError, bare, pick_state_dict, read_checkpoint, select_prefix

META = ('epoch', 'iter', 'time', 'seed', 'experiment_name', 'mmengine_version')


def publish(source: str, out: str | Path, whole: bool = False, half: bool = False) -> Path:
    """Write the weights of a checkpoint to a file with a hash in its name.

    Args:
        source: The checkpoint.
        out: The file to write, .pth or .safetensors; the first 8 digits of its sha256 are added to the name.
        whole: The whole model, not the backbone alone.
        half: In float16.

    Returns:
        The file, written atomically.

    Raises:
        CheckpointError: If the checkpoint cannot be read or published.
        ValueError: If ``out`` has another ending.
    """
    out = Path(out)
    if out.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'"{out}" must end in .pth or .safetensors.')
    content, source = read_checkpoint(source), bare(source)
    weights, meta = select_weights(pick_state_dict(content, source), whole, half, source), select_meta(content)
    if out.suffix == '.safetensors':
        data = safetensors.torch.save(weights, metadata=dict(meta=json.dumps(meta), format='pt'))
    else:
        buffer = io.BytesIO()
        torch.save(dict(meta=meta, state_dict=weights), buffer)
        data = buffer.getvalue()
    path = out.with_name(f'{out.stem}-{hashlib.sha256(data).hexdigest()[:8]}{out.suffix}')
    atomic_write(path, data)
    return path


def select_weights(state_dict: dict[str, Tensor], whole: bool, half: bool, source: str) -> dict[str, Tensor]:
    """The weights to publish.

    Args:
        state_dict: Of the whole model.
        whole: All of it, not the backbone alone.
        half: Floating-point weights in float16; counters stay as they are.
        source: For messages.

    Raises:
        CheckpointError: If there is no backbone, or a weight is not finite or does not fit float16.
    """
    if not whole:
        state_dict = {f'backbone.{key}': value for key, value in select_prefix(state_dict, 'backbone.', source).items()}
    weights = {}
    for key, value in state_dict.items():
        floating = value.is_floating_point()
        weights[key] = (value.half() if half and floating else value).contiguous().clone()
        if floating and not torch.isfinite(weights[key]).all():
            largest = float(value.abs().max())
            reason = f'{largest:g} does not fit float16 (65504)' if torch.isfinite(value).all() else 'it is not finite'
            raise CheckpointError(f'{key} of "{source}" cannot be published: {reason}.')
    return weights


def select_meta(content: dict) -> dict:
    """Metadata of the run in plain values; no config text, which mmengine's inferencers execute."""
    meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
    kept = {key: meta[key] for key in META if isinstance(meta.get(key), (str, int, float))}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if isinstance(classes, (list, tuple)):
        kept['dataset_meta'] = dict(classes=[str(name) for name in classes])
    return kept | dict(qbheat_mm_version=__version__)
