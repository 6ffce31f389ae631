"""Which checkpoint a run starts or resumes from: a complete one, read without executing anything in it."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from mmengine.logging import print_log
from torch.optim import Optimizer

from ..text import join_names
from .atomic import atomic_write, damage
from .loading import CheckpointError, bare, guard, read_checkpoint

WEIGHTS_ALONE = 'To start from its weights alone: --cfg-options load_from=FILE, without --resume.'
POINTER = 'last_checkpoint'  # mmengine's name of the file that names the checkpoint to resume from
INTERRUPTED = 'interrupted.pth'  # written after a signal
OWN = ('epoch_*.pth', 'iter_*.pth', INTERRUPTED)


def choose_checkpoint(load_from: str | None, resume: bool, work_dir: str | Path, trust: bool = False) -> str | None:
    """What a run loads or resumes from, as an address of :mod:`qbheat_mm.checkpoint`.

    Without the name of a file, the run resumes from the work dir's last checkpoint, or where that is damaged from the
    newest complete one; the damaged ones are named in the log.

    Args:
        load_from: As the config has it, or None.
        resume: Whether the run is resumed, rather than started with these weights.
        work_dir: The run's own folder.
        trust: Allow code in the file.

    Returns:
        None where there is nothing to load.

    Raises:
        CheckpointError: If the file to resume from is damaged, or everything in the work dir is.
    """
    if not resume:
        return guard(load_from, trust) if load_from else None
    if load_from is None:
        load_from = _last_complete(work_dir)
        print_log(f'Resuming from the last checkpoint in {work_dir}: {load_from or "none yet"}', logger='current')
    elif Path(bare(load_from)).is_file() and (reason := damage(bare(load_from))):
        complete = next((path for path in own_checkpoints(work_dir) if not damage(path)), None)
        remedy = f'Resume from "{complete}".' if complete else f'There is no complete one in "{work_dir}".'
        raise CheckpointError(f'The checkpoint "{bare(load_from)}" is damaged ({reason}). {remedy}')
    return guard(load_from, trust) if load_from else None


def check_resumable(checkpoint: dict, path: str) -> None:
    """Check that a checkpoint has all that a run resumes from.

    Raises:
        CheckpointError: With what it lacks.
    """
    parts = ('state_dict', 'optimizer', 'message_hub', 'meta')
    missing = [key for key in parts if not isinstance(checkpoint.get(key), dict)]
    if 'meta' not in missing:
        missing += [f'meta.{key}' for key in ('epoch', 'iter') if not isinstance(checkpoint['meta'].get(key), int)]
    if missing:
        raise CheckpointError(f'"{path}" cannot be resumed from, it lacks {", ".join(missing)}. {WEIGHTS_ALONE}')


def check_optimizer(state: dict, optimizer: Optimizer, path: str) -> None:
    """Check that an optimizer can resume from the state of another.

    Raises:
        CheckpointError: With what differs: the number of groups, a group's number of parameters, or the settings, by
            which torch tells optimizers apart.
    """
    groups, own = state.get('param_groups'), optimizer.param_groups
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(f'"{path}" cannot be resumed from: optimizer.param_groups is no list. {WEIGHTS_ALONE}')
    sizes = [[len(group.get('params', ())) for group in each] for each in (groups, own)]
    problem = None
    if sizes[0] != sizes[1]:
        problem = f'groups of {join_names(sizes[0])} parameters, where this run has groups of {join_names(sizes[1])}'
    for theirs, ours in zip(groups, own):
        extra = [key for key in theirs if key not in ours and not key.startswith('initial_')]
        absent = [key for key in ours if key not in theirs and not key.startswith('initial_')]
        if extra and absent:  # settings that are only absent, or extra, are those of another version of torch
            problem = f'the settings {join_names(extra)}, where {type(optimizer).__name__} has {join_names(absent)}'
    if problem:
        raise CheckpointError(
            f'"{path}" cannot be resumed from: it is of another optimizer, with {problem}. Set optim_wrapper as it '
            f'was. {WEIGHTS_ALONE}'
        )


def write_pointer(work_dir: str | Path, checkpoint: str | Path) -> None:
    """Name the checkpoint to resume from in mmengine's ``last_checkpoint``."""
    atomic_write(Path(work_dir) / POINTER, str(checkpoint).encode())


def own_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints of the run in ``work_dir``: the one it names as its last, then the others, the newest first.

    The newest is that of the highest epoch, and within an epoch of the highest iteration; copies change file times.
    """
    folder, named = Path(work_dir), Path(_pointed_to(work_dir) or '')
    if _is_file(named) and not _is_file(folder / named.name):  # the run writes elsewhere, and was not moved
        folder = named.parent
    last = folder / named.name
    paths = {path for pattern in OWN for path in folder.glob(pattern) if path.is_file()}
    if _is_file(last):
        paths.add(last)
    return sorted(paths, key=lambda path: (path == last, *_progress(path), path.stat().st_mtime_ns), reverse=True)


def _pointed_to(work_dir: str | Path) -> str | None:
    """What ``last_checkpoint`` says; None if there is none, or it is damaged."""
    path = Path(work_dir) / POINTER
    try:
        name = path.read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        name = ''
    if not name or not (_is_file(Path(name)) or _is_file(Path(work_dir) / Path(name).name) or '://' in name):
        reason = f'names "{name[:200]}", which is not there' if name else 'is damaged'
        print_log(f'"{path}" {reason}: taking the newest checkpoint.', logger='current', level=logging.WARNING)
        return None
    return name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a damaged name may be too long, or hold a zero
        return False


def _progress(path: Path) -> tuple[float, float]:
    """The epoch and iteration of a checkpoint. One that cannot be read comes where its name puts it, or first."""
    try:
        meta = read_checkpoint(path, mmap=True)['meta']
        return float(meta['epoch']), float(meta['iter'])
    except (CheckpointError, KeyError, TypeError, ValueError):
        kind, _, number = path.stem.rpartition('_')
        count = float(number) if number.isdecimal() else math.inf
        return (count, 0.0) if kind == 'epoch' else (math.inf, count)


def _last_complete(work_dir: str | Path) -> str | None:
    """The first of a run's own checkpoints that is complete; those before it are named in the log."""
    reasons = []
    for path in own_checkpoints(work_dir):
        reason = damage(path)
        if reason is None:
            return str(path)
        reasons.append(f'"{path}" is damaged ({reason})')
        print_log(f'{reasons[-1]}: not resumed from.', logger='current', level=logging.WARNING)
    if reasons:
        raise CheckpointError(
            f'There is no complete checkpoint to resume from: {"; ".join(reasons)}. Start over without --resume.'
        )
    return _pointed_to(work_dir)  # on another store than the local disk, if anywhere
