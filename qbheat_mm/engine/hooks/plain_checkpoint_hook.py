"""One rule for checkpoint files: only tensors and plain values enter or leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ...arguments import check_arguments
from ...checkpoint import bare, load_weights, pick_state_dict, trust_init_cfg
from ...checkpoint.fitting import blank_frozen, check_filled
from ...checkpoint.resume import check_optimizer, check_resumable, choose_checkpoint

ON_PURPOSE = (
    ' To load those that fit on purpose: --allow-partial, or default_hooks.plain_checkpoint.strict=False under '
    'other tools.'
)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Read and write checkpoints of tensors and plain values, so that no code in a file is executed.

    **Reading.** :mod:`qbheat_mm.checkpoint` reads every file without executing anything in it. Where the run resumes
    from the work dir's last checkpoint, the newest complete one is taken. What a run loads, resumes from or tests has
    to fit its model: mmengine only warns, and trains or tests what is left random.

    **Writing.** mmengine pickles its log curves as ``HistoryBuffer`` objects, for which torch >= 2.6 has to allow
    ``getattr`` (open-mmlab/mmengine#1655). Here they are written as lists, NumPy values as
    Python's, and lists become buffers again before mmengine reads them.

    Args:
        trust: Allow code in the checkpoints that this run reads.
        strict: Whether the weights must fit the model. Otherwise those are loaded that fit, at least one.

    Raises:
        CheckpointError: At the start of the run, with the file, if it is missing, broken or asks for code to be run,
            if its weights do not fit, or if the run is to resume from it and it is damaged, holds weights alone, or is
            of another optimizer.
    """

    priority = 'LOWEST'  # after every hook that adds to a checkpoint

    @check_arguments
    def __init__(self, trust: bool = False, strict: bool = True) -> None:
        self.trust = trust
        self.strict = strict

    def before_run(self, runner: Runner) -> None:
        """Choose the file, which mmengine's Runner reads afterwards."""
        for module in runner.model.modules() if self.trust else ():
            trust_init_cfg(getattr(module, 'init_cfg', None))
        self._to_load = blank_frozen(runner.model) if isinstance(runner._train_loop, BaseLoop) else {}
        runner._load_from = choose_checkpoint(runner._load_from, runner._resume, runner.work_dir, self.trust)

    def before_train(self, runner: Runner) -> None:
        """Check that every frozen weight was loaded, whichever way its module loads."""
        check_filled(self._to_load)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the file fits, and restore mmengine's buffers."""
        path = bare(runner._load_from)
        if runner._resume:
            check_resumable(checkpoint, path)
        weights = checkpoint['state_dict'] = pick_state_dict(checkpoint, path)
        if runner._resume:
            load_weights(runner.model, weights, path)
        else:
            load_weights(runner.model, weights, path, not self.strict, ON_PURPOSE)
        if runner._resume:
            _check_optimizers(checkpoint['optimizer'], runner.optim_wrapper, path)
            _forget_files_elsewhere(checkpoint['message_hub'].get('runtime_info', {}), runner)
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for key, value in scalars.items():
            if isinstance(value, dict):
                scalars[key] = HistoryBuffer(**value)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Objects to plain values; the weights and the optimizer's state are tensors already."""
        for key in checkpoint.keys() - {'state_dict', 'optimizer'}:
            checkpoint[key] = _to_plain(checkpoint[key])


def _check_optimizers(state: dict, optimizers: OptimWrapper, path: str) -> None:
    if isinstance(optimizers, OptimWrapperDict):
        for name, each in optimizers.items():
            check_optimizer(state.get(name, {}), each.optimizer, path)
    else:
        check_optimizer(state, optimizers.optimizer, path)  # the wrapper counts its own settings as a group


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
