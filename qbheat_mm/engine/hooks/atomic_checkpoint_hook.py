"""Checkpoints that survive what happens to a run; ``engine.resume`` chooses among them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ...checkpoint.atomic import PARTIAL, atomic_write
from ...checkpoint.resume import INTERRUPTED, POINTER


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, but at every moment there is a whole checkpoint.

    - A checkpoint is written under another name and renamed; an outdated one, the best included, is removed after the
      new one is there (so room for one more is needed). A full disk stops the run, and leaves the old ones.
    - SIGTERM, with which clusters announce that they take a machine back, ends the iteration, writes
      ``interrupted.pth`` and exits with code 143. With several processes, one that gets it is enough.

    Args:
        *args: As in mmengine's CheckpointHook.
        **kwargs: As in mmengine's CheckpointHook. An ``out_dir`` on another store than the local disk is left to
            mmengine.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._local = '://' not in str(self.out_dir) and self.backend_args is None and self.file_client_args is None
        if self._local:
            self.backend_args = dict(backend='atomic')
        self._terminated = False

    def before_run(self, runner: Runner) -> None:
        """Have the workers of the data loaders leave SIGTERM to the main process."""
        for loop in (runner._train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                loader = loop.dataloader
                loader.worker_init_fn = partial(_obey_the_parent_alone, loader.worker_init_fn)

    # -------------------------------------------------------------------------------------------------- writing

    def before_train(self, runner: Runner) -> None:
        """Prepare, clean up after a run that was killed, and listen for SIGTERM."""
        super().before_train(runner)
        if self._local and dist.is_main_process():
            for left in Path(self.out_dir).glob('*.pth' + PARTIAL):
                left.unlink()
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._note_sigterm)

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        super().after_train(runner)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

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
        self._write(
            runner,
            name,
            meta,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            by_epoch=self.by_epoch,
            **self.args,
        )
        if self.max_keep_ckpts > 0:
            hub.update_info('keep_ckpt_ids', kept)
        if dist.is_main_process():
            for old in [self.filename_tmpl.format(each) for each in outdated] + [INTERRUPTED]:
                self._remove(self.file_backend.join_path(self.out_dir, old))

    def _write(self, runner: Runner, name: str, meta: dict, **kwargs) -> None:
        """Write a checkpoint to resume from, and its name into mmengine's ``last_checkpoint``."""
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, meta=meta, backend_args=self.backend_args, **kwargs
        )
        if dist.is_main_process():
            path = self.file_backend.join_path(self.out_dir, name)
            atomic_write(Path(runner.work_dir) / POINTER, str(path).encode())

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as DeepSpeed writes them
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As the parent, which removes the last best one before it writes the new one; here after that."""
        if not self._local:
            return super()._save_best_checkpoint(runner, metrics)
        with self.file_backend.removing_last():
            super()._save_best_checkpoint(runner, metrics)

    # -------------------------------------------------------------------------------------------------- SIGTERM

    def _note_sigterm(self, signum: int, frame) -> None:
        self._terminated = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Save as the parent does, and stop after SIGTERM: where accumulated gradients have been used up."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        terminated = torch.tensor(int(self._terminated))
        dist.all_reduce(terminated, op='max')
        if terminated and runner.optim_wrapper.should_update():
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop after SIGTERM; several processes go on, which may differ in their number of batches."""
        if self._terminated and dist.get_world_size() == 1:
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def _stop(self, runner: Runner, meta: dict) -> None:
        self._write(runner, INTERRUPTED, meta, by_epoch=False)
        dist.barrier()
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        runner.logger.warning(f'SIGTERM: stopped at iteration {meta["iter"]}, kept in {path}. Go on with --resume.')
        sys.exit(128 + signal.SIGTERM)


def _obey_the_parent_alone(then: Callable[[int], None] | None, worker_id: int) -> None:
    """In a worker of a data loader: SIGTERM to the whole group is the main process's to act on.

    The main process itself ends its workers with that signal, and waits for them.
    """

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
    if then is not None:
        then(worker_id)
