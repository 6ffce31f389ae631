"""Safe loading of checkpoints: no code in a file is executed.

An address of a checkpoint is a file, an http(s) address, a name in mmengine's model zoos (``torchvision://...``) or a
file in another store of mmengine's. This module registers the loader of all of them, so whatever reads a checkpoint
with mmengine while this package is imported reads it with this module: runners, ``Pretrained`` initializers, and the
inferencers and functions of mmpretrain and mmdet. ``trusted://ADDRESS`` allows code in one file.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine import fileio
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor

from ..files import describe_content, open_file

TRUSTED = 'trusted://'


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


def _method_of_buffer(owner: type, name: str):
    """What stands for ``getattr`` in a file: mmengine pickles the methods of its log curves by name."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError('WeightsUnpickler error: it asks for an attribute')
    return getattr(owner, name)


# The log curves and NumPy values in files of stock mmengine runs. mmengine itself allows getattr, and with it any code.
_NUMPY = getattr(np, '_core', None) or np.core
PLAIN_TYPES = [
    HistoryBuffer,
    (_method_of_buffer, 'builtins.getattr'),
    _NUMPY.multiarray._reconstruct,
    _NUMPY.multiarray.scalar,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ('bool', 'i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f2', 'f4', 'f8')},
]


def guard(address: str | Path, trust: bool = False) -> str:
    """The address with which a file is read; with ``trust``, code in it may run."""
    address = str(address)
    return TRUSTED + address if trust and not address.startswith(TRUSTED) else address


def bare(address: str | Path) -> str:
    """The address without the mark of trust."""
    return str(address).removeprefix(TRUSTED)


def trust_init_cfg(node) -> None:
    """Allow code in every ``Pretrained`` checkpoint in a config, or in the ``init_cfg`` of a module; in place."""
    if isinstance(node, dict):
        if isinstance(node.get('checkpoint'), (str, Path)) and node['checkpoint']:
            node['checkpoint'] = guard(node['checkpoint'], trust=True)
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for each in node:
            trust_init_cfg(each)


def find_file(address: str) -> Path | io.BytesIO:
    """The local file of an address, or the content from another store.

    What has an http address is downloaded into torch's hub folder, as mmengine does.

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
    if scheme.split(':')[-1] in ('s3', 'petrel'):
        try:
            return io.BytesIO(fileio.get(address, dict(backend='petrel')))
        except (ImportError, OSError) as error:
            raise CheckpointError(
                f'"{address}" cannot be read ({error}): download the file and name it instead.'
            ) from error
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


def read_checkpoint(address: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint or a safetensors file without executing anything in it.

    Args:
        address: See above; behind ``trusted://`` code in the file may run.
        mmap: Read the tensors of a local file when they are used.

    Returns:
        What the file holds.

    Raises:
        CheckpointError: If the file is missing, broken, or asks for code to be run.
    """
    trust = str(address).startswith(TRUSTED)
    address = bare(address)
    path = find_file(address)
    if reason := _describe(path):
        raise CheckpointError(f'"{address}" is no checkpoint: {reason}.')
    if isinstance(path, Path) and path.suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(PLAIN_TYPES):
            content = torch.load(path, map_location='cpu', weights_only=not trust, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).partition('WeightsUnpickler error: ')[2].splitlines() or ['it is not a torch file']
        raise CheckpointError(
            f'"{address}" is not a file of plain weights ({reason[0]}); nothing in it was executed. If you trust its '
            f'source, pass --trust-checkpoint to our tools, or name it {TRUSTED}{address} elsewhere.'
        ) from error
    except Exception as error:  # torch's reader meets broken bytes with whatever they lead to
        raise CheckpointError(
            f'"{address}" is damaged or not a checkpoint ({type(error).__name__}: {error}).'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f'"{address}" holds a {type(content).__name__}, not a dict of weights.')
    return content


def _describe(file: Path | io.BytesIO) -> str:
    """What a file is instead of a checkpoint, if its beginning shows it."""
    if isinstance(file, io.BytesIO):
        start = file.getvalue()[:512]
    else:
        with open_file(file) as opened:
            start = opened.read(512)
    return '' if start.startswith(b'PK') else describe_content(start)  # torch's own files are zip archives


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f'"{path}" is not a readable safetensors file: {error}') from error


@CheckpointLoader.register_scheme(prefixes=list(CheckpointLoader._schemes), force=True)
def load_from_plain(filename: str, map_location=None) -> dict:
    """The loader of mmengine for every address; weights stay on the CPU, and modules copy them to where they are.

    Config text in ``meta`` is left out: it is Python, which mmengine's Runner would execute when it resumes
    (``config``), and its inferencers when they are given no config (``cfg``).
    """
    content = read_checkpoint(filename)
    meta = content.get('meta')
    if isinstance(meta, dict) and any([meta.pop(key, None) is not None for key in ('config', 'cfg')]):
        print_log(
            f'{filename}: the config text in it is not executed ({TRUSTED}{filename} would allow it).',
            logger='current',
        )
    if filename.startswith('mmcls://'):
        content = mmengine_checkpoint._process_mmcls_checkpoint(content)
    return content


@CheckpointLoader.register_scheme(prefixes=TRUSTED)
def load_from_trusted(filename: str, map_location=None) -> dict:
    """The loader of mmengine for ``trusted://``."""
    content = read_checkpoint(filename)
    return mmengine_checkpoint._process_mmcls_checkpoint(content) if '://mmcls://' in filename else content


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
    state_dict = OrderedDict((key, value) for key, value in content.items() if isinstance(value, Tensor))
    if not state_dict:
        raise CheckpointError(
            f'"{bare(path)}" holds no weights; its fields are {", ".join(map(str, content)) or "none"}.'
        )
    return _rename(state_dict, 'module.', getattr(content, '_metadata', {}))


def _rename(state_dict: dict[str, Tensor], prefix: str, metadata: dict) -> dict[str, Tensor]:
    """Without ``prefix``, with the versions of modules, by which they convert what older ones have saved."""
    renamed = OrderedDict((key.removeprefix(prefix), value) for key, value in state_dict.items())
    versions = metadata if isinstance(metadata, dict) else {}
    renamed._metadata = {(name + '.').removeprefix(prefix).rstrip('.'): each for name, each in versions.items()}
    return renamed


def select_prefix(state_dict: dict[str, Tensor], prefix: str, source: str | Path) -> dict[str, Tensor]:
    """The entries under ``prefix``, without it.

    Raises:
        CheckpointError: If there are none; names the prefixes that the file has.
    """
    prefix = prefix if prefix.endswith('.') or not prefix else prefix + '.'
    selected = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not selected:
        counts = Counter(key.split('.')[0] + '.' for key in state_dict)
        found = ', '.join(f'"{name}" ({count} entries)' for name, count in counts.items())
        raise CheckpointError(f'"{bare(source)}" has nothing under the prefix "{prefix}". Its prefixes: {found}.')
    return _rename(selected, prefix, getattr(state_dict, '_metadata', {}))
