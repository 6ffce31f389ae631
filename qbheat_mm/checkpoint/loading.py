"""Safe and strict loading of weights: no code in a file is executed, and every key must fit.

An address of a checkpoint is a file, an http(s) address or a name in mmengine's model zoos (``torchvision://...``).
Behind ``plain://`` mmengine's loaders read it with this module, so a Runner or a ``Pretrained`` initializer takes a
guarded address, and nothing of mmengine is replaced. ``trusted://`` allows code in the file.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from ..text import join_names

PLAIN, TRUSTED = 'plain://', 'trusted://'


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


def guard(address: str | Path, trust: bool = False) -> str:
    """The address with which mmengine's loaders read the file through this module.

    Args:
        address: Left as it is where it is guarded already.
        trust: Allow code in the file.
    """
    address = str(address)
    return address if address.startswith((PLAIN, TRUSTED)) else (TRUSTED if trust else PLAIN) + address


def bare(address: str | Path) -> str:
    """The address without its guard."""
    return str(address).removeprefix(PLAIN).removeprefix(TRUSTED)


def guard_init_cfg(node, trust: bool = False) -> None:
    """Guard every ``Pretrained`` checkpoint in a config, or in the ``init_cfg`` of a module; changed in place."""
    if isinstance(node, dict):
        if isinstance(node.get('checkpoint'), (str, Path)) and node['checkpoint']:
            node['checkpoint'] = guard(node['checkpoint'], trust)
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for each in node:
            guard_init_cfg(each, trust)


def find_file(address: str) -> Path:
    """The local file of an address; other stores are downloaded into torch's hub folder, as mmengine does.

    Raises:
        CheckpointError: If there is no such file or name.
    """
    scheme, found, name = address.partition('://')
    if not found:
        path = Path(address).expanduser()
        if path.is_dir():
            raise CheckpointError(
                f'"{address}" is a folder; sharded checkpoints cannot be looked into. Name a file, or merge them first.'
            )
        if not path.is_file():
            raise CheckpointError(f'There is no checkpoint at "{address}".')
        return path
    if scheme not in ('http', 'https'):
        return find_file(_find_in_zoo(scheme, name, address))
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(address).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print_log(f'Downloading {address} to {path}', logger='current')
        try:
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except (URLError, OSError, ValueError) as error:
            raise CheckpointError(f'"{address}" cannot be downloaded: {error}') from error
    return path


def _find_in_zoo(scheme: str, name: str, address: str) -> str:
    """The address behind a name like ``torchvision://resnet50``, from mmengine's own lists."""
    if scheme in ('torchvision', 'modelzoo'):
        names = mmengine_checkpoint.get_torchvision_models()
    elif scheme in ('open-mmlab', 'openmmlab'):
        names = mmengine_checkpoint.get_external_models()
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    elif scheme == 'mmcls':
        names = mmengine_checkpoint.get_mmcls_models()
    else:
        raise CheckpointError(f'"{address}" cannot be read: download the file and name it instead.')
    if name not in names:
        raise CheckpointError(f'There is no model "{name}" behind {scheme}://.')
    found = names[name]
    return found if '://' in found else os.path.join(mmengine_checkpoint._get_mmengine_home(), found)


def read_checkpoint(address: str | Path) -> dict:
    """Read a checkpoint or a safetensors file without executing anything in it.

    Args:
        address: See above; behind ``trusted://`` code in the file may run.

    Returns:
        What the file holds.

    Raises:
        CheckpointError: If the file is missing, broken, or asks for code to be run.
    """
    trust = str(address).startswith(TRUSTED)
    address = bare(address)
    path = find_file(address)
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location='cpu', weights_only=not trust)
    except pickle.UnpicklingError as error:
        reason = str(error).partition('WeightsUnpickler error: ')[2].splitlines() or ['it is not a torch file']
        raise CheckpointError(
            f'"{address}" is not a file of plain weights ({reason[0]}); nothing in it was executed. If you trust its '
            'source (raw files of stock mmengine runs need it, for their HistoryBuffer), pass --trust-checkpoint, or '
            'convert it once with tools/model_converters/publish_model.py --whole --trust-checkpoint.'
        ) from error
    except Exception as error:  # torch's reader meets broken bytes with whatever they lead to
        raise CheckpointError(
            f'"{address}" is damaged or not a checkpoint ({type(error).__name__}: {error}).'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f'"{address}" holds a {type(content).__name__}, not a dict of weights.')
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f'"{path}" is not a readable safetensors file: {error}') from error


@mmengine_checkpoint.CheckpointLoader.register_scheme(prefixes=PLAIN)
def load_from_plain(filename: str, map_location=None) -> dict:
    """The loader of mmengine for ``plain://``; weights stay on the CPU, and modules copy them to where they are.

    ``meta['config']`` is left out: it is Python, which mmengine's Runner would execute when it resumes.
    """
    content = read_checkpoint(filename)
    if isinstance(content.get('meta'), dict) and content['meta'].pop('config', None) is not None:
        print_log(
            f'{bare(filename)}: the config text in it is not executed (--trust-checkpoint would execute it).',
            logger='current',
            level=logging.WARNING,
        )
    if 'mmcls://' in filename:
        content = mmengine_checkpoint._process_mmcls_checkpoint(content)
    return content


@mmengine_checkpoint.CheckpointLoader.register_scheme(prefixes=TRUSTED)
def load_from_trusted(filename: str, map_location=None) -> dict:
    """The loader of mmengine for ``trusted://``."""
    return read_checkpoint(filename)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint: the file itself, or what lies under ``state_dict`` or ``model``."""
    return pick_state_dict(read_checkpoint(path), path)


def pick_state_dict(content: dict, path: str | Path) -> dict[str, Tensor]:
    """The weights in the content of the checkpoint ``path``.

    Raises:
        CheckpointError: If there are none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state_dict = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(
            f'"{bare(path)}" holds no weights; its fields are {", ".join(map(str, content)) or "none"}.'
        )
    return {key.removeprefix('module.'): value for key, value in state_dict.items()}


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
        raise CheckpointError(f'"{bare(source)}" has nothing under the prefix "{prefix}". Its prefixes: {found}.')
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
        f'{kind}: {join_names(keys)}'
        for kind, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(f'"{bare(checkpoint)}" does not fit {name}. ' + '; '.join(problems) + '.')
    module.load_state_dict(state_dict, strict=False)
    print_log(f'{name}: loaded all {len(state_dict)} entries of {bare(checkpoint)}', logger='current')
