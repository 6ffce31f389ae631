"""Let a run read no checkpoint that would run code."""

from __future__ import annotations

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...checkpoint import CheckpointError, bare, guard_init_cfg
from ...checkpoint.resume import choose_checkpoint


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Have ``load_from``, ``resume`` and every ``init_cfg`` of the model read as ``qbheat_mm.checkpoint`` reads.

    mmengine unpickles whatever it is given (onedl-mmengine 0.10.12 warns, then runs the code in it) and on resuming
    executes the config text in ``meta['config']``. Before it reads anything, this hook points it to our reader, for
    this run alone, and where it is to resume from the work dir's last checkpoint, to the newest whole one. It is part
    of the configs' runtime, so it works under the packages' own tools too; our tools add it to every config.

    Args:
        trust: Let code in the checkpoints of this run be executed.

    Raises:
        CheckpointError: While the run starts, with the file, if it is missing, broken, asks for code to be run, or
            is to be resumed from and is damaged or holds weights alone.
    """

    priority = 'VERY_HIGH'

    def __init__(self, trust: bool = False) -> None:
        self.trust = trust

    def before_run(self, runner: Runner) -> None:
        """Guard the addresses; mmengine's Runner reads them after this."""
        for module in runner.model.modules():
            guard_init_cfg(getattr(module, 'init_cfg', None), self.trust)
        runner._load_from = choose_checkpoint(runner._load_from, runner._resume, runner.work_dir, self.trust)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to resume from a file that cannot be resumed from."""
        if not runner._resume:
            return
        parts = ('state_dict', 'optimizer', 'message_hub', 'meta')
        missing = [key for key in parts if not isinstance(checkpoint.get(key), dict)]
        if 'meta' not in missing:
            missing += [f'meta.{key}' for key in ('epoch', 'iter') if not isinstance(checkpoint['meta'].get(key), int)]
        if missing:
            raise CheckpointError(
                f'"{bare(runner._load_from)}" cannot be resumed from, it lacks {", ".join(missing)}. To start from its '
                'weights alone: --cfg-options load_from=FILE, without --resume.'
            )

    def before_train(self, runner: Runner) -> None:
        """Forget what a resumed checkpoint says of files elsewhere: CheckpointHook deletes the best one before."""
        info, work_dir = runner.message_hub.runtime_info, Path(runner.work_dir).resolve()
        for key in [key for key in info if key.startswith('best_ckpt')]:
            if not Path(str(info[key])).resolve().is_relative_to(work_dir):
                runner.logger.warning(
                    f'{key} of the checkpoint, {info[key]}, is not in the work dir and is left alone.'
                )
                info.pop(key)
        if 'keep_ckpt_ids' in info:
            info['keep_ckpt_ids'] = [each for each in info['keep_ckpt_ids'] if isinstance(each, int)]
