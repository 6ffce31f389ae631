"""Checkpoints that are complete at every moment; :mod:`qbheat_mm.checkpoint.resume` chooses among them."""

from __future__ import annotations

import functools
from itertools import chain
from pathlib import Path

from mmengine import dist
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...arguments import check_arguments
from ...checkpoint.atomic import PARTIAL
from ...checkpoint.resume import INTERRUPTED, POINTER, write_pointer
from ...checkpoint.work_dir import WorkDirError, claim, release


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with atomic writes.

    A checkpoint is written under a temporary name and renamed. An outdated one, the best included, is removed after
    the new one is complete, so there must be room for one more. A full disk stops the run and leaves the old ones.
    One run at a time has a work dir, and none starts anew where there are checkpoints.

    Args:
        *args: As in mmengine's CheckpointHook.
        **kwargs: As in mmengine's CheckpointHook. An ``out_dir`` on another store than the local disk is left to
            mmengine.
    """

    @functools.wraps(CheckpointHook.__init__)
    def __init__(self, *args, **kwargs) -> None:
        check_arguments(CheckpointHook.__init__)(self, *args, **kwargs)
        self._local = '://' not in str(self.out_dir) and self.backend_args is None and self.file_client_args is None
        if self._local:
            self.backend_args = dict(backend='atomic')

    def before_train(self, runner: Runner) -> None:
        """Claim the work dir, prepare, and remove the temporary files of a run that was killed.

        Raises:
            WorkDirError: If another run has it.
        """
        error = [None]
        if dist.is_main_process():
            try:
                claim(runner.work_dir, runner._resume)
            except WorkDirError as refused:
                error = [str(refused)]
        dist.broadcast_object_list(error)
        if error[0]:
            raise WorkDirError(error[0])
        super().before_train(runner)
        if self._local and dist.is_main_process():
            left = Path(self.out_dir).glob('*.pth' + PARTIAL), Path(runner.work_dir).glob(POINTER + PARTIAL)
            for partial in chain(*left):
                partial.unlink()

    def after_train(self, runner: Runner) -> None:
        """Release the work dir."""
        super().after_train(runner)
        release(runner.work_dir)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Write first and remove then; the parent does it the other way round."""
        hub, name = runner.message_hub, self.filename_tmpl.format(step)
        kept, outdated = [step], []
        if self.max_keep_ckpts > 0:
            # The file itself lists what it makes outdated: a run killed before the removal removes that on resume.
            kept = [each for each in hub.runtime_info.get('keep_ckpt_ids', []) if each != step] + [step]
            kept, outdated = kept[-self.max_keep_ckpts :], kept[: -self.max_keep_ckpts]
            hub.update_info('keep_ckpt_ids', outdated + kept)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if self.max_keep_ckpts > 0:
            hub.update_info('keep_ckpt_ids', kept)
        if dist.is_main_process():
            write_pointer(runner.work_dir, self.last_ckpt)
            for old in [*map(self.filename_tmpl.format, outdated), INTERRUPTED]:
                self._remove(self.file_backend.join_path(self.out_dir, old))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as DeepSpeed writes them
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As the parent, which removes the previous best one before it writes the new one; here after that."""
        outdated: list[str] = []
        self.file_backend.remove = outdated.append
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del self.file_backend.remove
        for path in outdated:
            self._remove(path)
