"""One rule for checkpoint files: only tensors and plain values enter or leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...arguments import check_arguments
from ...checkpoint import CheckpointError, bare, guard_init_cfg
from ...checkpoint.resume import choose_checkpoint


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Read and write checkpoints of tensors and plain values, so that no code in a file is executed.

    **Reading.** mmengine unpickles any file (onedl-mmengine 0.10.12 warns, then runs the code in it) and on resume
    executes the config text in ``meta['config']``. Before mmengine reads anything, this hook directs ``load_from``,
    ``resume`` and every ``init_cfg`` of the model to :mod:`qbheat_mm.checkpoint`, for this run alone. Where the run
    resumes from the work dir's last checkpoint, the newest complete one is taken.

    **Writing.** mmengine pickles its log curves as ``HistoryBuffer`` objects, for which torch >= 2.6 would have to
    allow ``getattr`` (open-mmlab/mmengine#1655), and with it any code. They are written as lists, NumPy values as
    Python's, and lists become buffers again before mmengine reads them.

    Args:
        trust: Allow code in the checkpoints that this run reads.

    Raises:
        CheckpointError: At the start of the run, with the file, if it is missing, broken or asks for code to be run,
            or if the run is to resume from it and it is damaged or holds weights alone.
    """

    priority = 'LOWEST'  # after every hook that adds to a checkpoint

    @check_arguments
    def __init__(self, trust: bool = False) -> None:
        self.trust = trust

    def before_run(self, runner: Runner) -> None:
        """Guard the addresses, which mmengine's Runner reads afterwards."""
        for module in runner.model.modules():
            guard_init_cfg(getattr(module, 'init_cfg', None), self.trust)
        runner._load_from = choose_checkpoint(runner._load_from, runner._resume, runner.work_dir, self.trust)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check what is resumed from, and restore mmengine's buffers; checkpoints of other runs pass as they are."""
        if runner._resume:
            _check_resumable(checkpoint, bare(runner._load_from))
            _forget_files_elsewhere(checkpoint['message_hub'].get('runtime_info', {}), runner)
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for key, value in scalars.items():
            if isinstance(value, dict):
                scalars[key] = HistoryBuffer(**value)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Objects to plain values; the weights and the optimizer's state are tensors already."""
        for key in checkpoint.keys() - {'state_dict', 'optimizer'}:
            checkpoint[key] = _to_plain(checkpoint[key])


def _check_resumable(checkpoint: dict, path: str) -> None:
    parts = ('state_dict', 'optimizer', 'message_hub', 'meta')
    missing = [key for key in parts if not isinstance(checkpoint.get(key), dict)]
    if 'meta' not in missing:
        missing += [f'meta.{key}' for key in ('epoch', 'iter') if not isinstance(checkpoint['meta'].get(key), int)]
    if missing:
        raise CheckpointError(
            f'"{path}" cannot be resumed from, it lacks {", ".join(missing)}. To start from its weights alone: '
            '--cfg-options load_from=FILE, without --resume.'
        )


def _forget_files_elsewhere(info: dict, runner: Runner) -> None:
    """Drop names of files outside the work dir: CheckpointHook would delete the previous best one."""
    work_dir = Path(runner.work_dir).resolve()
    for key in [key for key in info if key.startswith('best_ckpt')]:
        if not Path(str(info[key])).resolve().is_relative_to(work_dir):
            runner.logger.warning(f'{key} of the checkpoint, {info[key]}, is not in the work dir and is left alone.')
            info.pop(key)
    if 'keep_ckpt_ids' in info:
        info['keep_ckpt_ids'] = [each for each in info['keep_ckpt_ids'] if isinstance(each, int)]


def _to_plain(value):
    if isinstance(value, dict):
        return {_to_plain(key): _to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_plain(each) for each in value)
    if isinstance(value, HistoryBuffer):
        values, counts = value.data
        return dict(log_history=values.tolist(), count_history=counts.tolist(), max_length=value.max_length)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value
