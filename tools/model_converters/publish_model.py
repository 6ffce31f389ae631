"""Make a file to give away of a checkpoint: the backbone's weights alone, as plain tensors.

    python tools/model_converters/publish_model.py work_dirs/.../epoch_200.pth qbheat_mobile-former-294m.pth

writes qbheat_mobile-former-294m-<first 8 digits of the file's sha256>.pth, or safetensors where the name ends so. Its
keys keep the prefix "backbone.", so configs take it in place of the checkpoint without another change. Optimizer,
curves and the text of the config stay behind; metadata are plain values.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qbheat_mm.checkpoint import (
    TRUST_HELP,
    CheckpointError,
    bare,
    guard,
    pick_state_dict,
    read_checkpoint,
    select_prefix,
)
from qbheat_mm.version import __version__

META = ('epoch', 'iter', 'time', 'seed', 'experiment_name', 'mmengine_version')


def select_weights(state_dict: dict[str, Tensor], whole: bool, half: bool, source: str) -> dict[str, Tensor]:
    """The weights to publish.

    Args:
        state_dict: Of the whole model.
        whole: All of it, not the backbone alone.
        half: Floats in float16; counters stay as they are.
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
    """What is worth knowing of the run, in plain values: no config text, which mmengine's inferencers execute."""
    meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
    kept = {key: meta[key] for key in META if isinstance(meta.get(key), (str, int, float))}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if isinstance(classes, (list, tuple)):
        kept['dataset_meta'] = dict(classes=[str(name) for name in classes])
    return kept | dict(qbheat_mm_version=__version__)


def publish(source: str, out: str | Path, whole: bool = False, half: bool = False) -> Path:
    """Publish a checkpoint.

    Args:
        source: The checkpoint.
        out: The file to write, .pth or .safetensors; the hash is put into its name.
        whole: The whole model, not the backbone alone.
        half: In float16.

    Returns:
        The file, which appears complete or not at all.

    Raises:
        CheckpointError: If the checkpoint cannot be read or published.
        ValueError: If ``out`` has another ending.
    """
    out = Path(out)
    if out.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'"{out}" must end in .pth or .safetensors.')
    content, source = read_checkpoint(source), bare(source)
    weights, meta = select_weights(pick_state_dict(content, source), whole, half, source), select_meta(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        if out.suffix == '.safetensors':
            save_file(weights, unfinished, metadata=dict(meta=json.dumps(meta), format='pt'))
        else:
            torch.save(dict(meta=meta, state_dict=weights), unfinished)
        digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
        return unfinished.rename(out.with_name(f'{out.stem}-{digest[:8]}{out.suffix}'))
    finally:
        unfinished.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Publish as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='the checkpoint')
    parser.add_argument('out', help='the file to write, .pth or .safetensors; the hash is put into its name')
    parser.add_argument('--whole', action='store_true', help='the whole model, not the backbone alone')
    parser.add_argument('--half', action='store_true', help='in float16')
    parser.add_argument('--trust-checkpoint', action='store_true', help=TRUST_HELP)
    args = parser.parse_args(argv)
    try:
        path = publish(guard(args.checkpoint, args.trust_checkpoint), args.out, args.whole, args.half)
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
