"""Reading weights: safely (nothing is executed) and strictly (every key arrives, or it says which did not)."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint or a safetensors file without executing anything in it.

    Args:
        path: A file, or an http(s) address, which torch's hub caches.

    Returns:
        What the file holds.

    Raises:
        CheckpointError: If the file is missing, broken, or asks for code to be run.
    """
    path = str(path)
    if path.startswith(('http://', 'https://')):
        return torch.hub.load_state_dict_from_url(path, map_location='cpu', weights_only=True)
    if not Path(path).is_file():
        raise CheckpointError(f'There is no checkpoint at "{path}".')
    if path.endswith('.safetensors'):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f'"{path}" is not a readable safetensors file: {error}') from error
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition('WeightsUnpickler error: ')[2].splitlines() or ['it is not a torch file']
        raise CheckpointError(
            f'"{path}" is not a file of plain weights ({reason[0]}); nothing in it was executed. Export its weights '
            'as tensors where you trust it.'
        ) from error
    except Exception as error:  # torch's reader meets broken bytes with whatever they lead to
        raise CheckpointError(f'"{path}" is damaged or not a checkpoint ({type(error).__name__}: {error}).') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'"{path}" holds a {type(content).__name__}, not a dict of weights.')
    return content


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint: the file itself, or what lies under ``state_dict`` or ``model``."""
    content = read_checkpoint(path)
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state_dict = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(f'"{path}" holds no weights; its fields are {", ".join(map(str, content)) or "none"}.')
    return {key.removeprefix('module.'): value for key, value in state_dict.items()}


def _shorten(keys: list[str], limit: int = 8) -> str:
    return ', '.join(keys[:limit]) + (f' and {len(keys) - limit} more' if len(keys) > limit else '')


def select_prefix(state_dict: dict[str, Tensor], prefix: str, source: str | Path) -> dict[str, Tensor]:
    """The entries under ``prefix``, without it.

    Raises:
        CheckpointError: If there are none; names the prefixes that the file has.
    """
    prefix = prefix if prefix.endswith('.') or not prefix else prefix + '.'
    selected = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not selected:
        counts = Counter(key.split('.')[0] + '.' for key in state_dict)
        found = ', '.join(f'"{name}" ({count} entries)' for name, count in counts.items())
        raise CheckpointError(f'"{source}" has nothing under the prefix "{prefix}". Its prefixes: {found}.')
    return selected


def load_pretrained(module: nn.Module, checkpoint: str | Path | None, prefix: str | None = None) -> None:
    """Load a checkpoint into ``module``; every key must fit.

    Args:
        module: Takes the weights.
        checkpoint: The file or address.
        prefix: Where the module's weights lie in the file, ``'backbone.'`` as a rule.

    Raises:
        CheckpointError: If a key is missing, is unexpected, or has another shape; names them.
    """
    name = type(module).__name__
    if not checkpoint:
        raise CheckpointError(
            f'No checkpoint is named for {name}. Set init_cfg.checkpoint of it, for example '
            '`--cfg-options model.backbone.init_cfg.checkpoint=FILE`.'
        )
    state_dict = select_prefix(read_state_dict(checkpoint), prefix or '', checkpoint)
    own = module.state_dict()
    # Files from before PyTorch 0.4.1 lack this counter, and no output depends on it.
    missing = [key for key in own if key not in state_dict and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in state_dict if key not in own]
    shapes = [
        f'{key} {tuple(value.shape)} where {name} has {tuple(own[key].shape)}'
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f'{kind}: {_shorten(keys)}'
        for kind, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(f'"{checkpoint}" does not fit {name}. ' + '; '.join(problems) + '.')
    module.load_state_dict(state_dict, strict=False)
    print_log(f'{name}: loaded all {len(state_dict)} entries of {checkpoint}', logger='current')
