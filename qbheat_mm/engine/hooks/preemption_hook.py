"""Interrupted runs: a signal writes a checkpoint and ends the run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial

import torch
from mmengine import dist
from mmengine.fileio import join_path
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from pydantic import PositiveInt
from torch.utils.data import DataLoader

from ...arguments import check_arguments
from ...checkpoint.resume import INTERRUPTED, write_pointer
from ..runners import optim_wrappers

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """After a signal to end, end the run so that it can be resumed.

    These are SIGTERM, which clusters send before they reclaim a machine, SIGUSR1, with which Slurm warns of the time
    limit (``--signal=USR1@120``), and SIGINT, which Ctrl-C sends; the second Ctrl-C ends the run at once. The current
    iteration is finished, and the accumulation of gradients that it belongs to; ``interrupted.pth`` is written where
    the other checkpoints are, and the process exits with code 128 plus the signal's number, 143 after SIGTERM. Of
    several processes, one that receives a signal is enough: they exchange this every ``interval`` iterations, without a
    collective operation in between.

    Args:
        interval: Iterations between two such exchanges; a single process reacts at once.
    """

    priority = 'LOWEST'  # after the checkpoint that an epoch ends with

    @check_arguments
    def __init__(self, interval: PositiveInt = 10) -> None:
        self.interval = interval
        self._received, self._stopping = 0, False  # the number of the signal
        self._handlers: dict[int, Callable | int | None] = {}

    def before_run(self, runner: Runner) -> None:
        """Have the workers of the data loaders leave these signals to the main process."""
        for loop in (runner._train_loop, runner._val_loop):
            loader = loop.dataloader if isinstance(loop, BaseLoop) else None
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = partial(_leave_signals_to_main, loader.worker_init_fn)

    def before_train(self, runner: Runner) -> None:
        """Listen for the signals."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Restore the previous handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, signum: int, frame) -> None:
        self._received = signum
        if signum == signal.SIGINT:
            print('\nStopping after this iteration; Ctrl-C again stops at once.', file=sys.stderr)
            signal.signal(signum, signal.default_int_handler)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Stop after a signal, once accumulated gradients have been used."""
        if dist.get_world_size() == 1:
            self._stopping = self._received
        elif self.every_n_train_iters(runner, self.interval):
            flag = torch.tensor(self._received)
            dist.all_reduce(flag, op='max')
            self._received = int(flag)
            self._stopping = bool(flag)
        if self._stopping and all(wrapper.should_update() for wrapper in optim_wrappers(runner)):
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop after a signal; several processes go on, since they may differ in their number of batches."""
        if self._received and dist.get_world_size() == 1:
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def _stop(self, runner: Runner, meta: dict) -> None:
        out_dir, backend_args = runner.work_dir, dict(backend='atomic')
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                out_dir, backend_args = hook.out_dir, hook.backend_args
        runner.save_checkpoint(out_dir, INTERRUPTED, meta=meta, by_epoch=False, backend_args=backend_args)
        path = join_path(out_dir, INTERRUPTED, backend_args=backend_args)
        if dist.is_main_process():
            write_pointer(runner.work_dir, path)
        dist.barrier()
        name = signal.Signals(self._received).name
        runner.logger.warning(f'{name}: stopped at iteration {meta["iter"]}, saved to {path}. Continue with --resume.')
        self.after_train(runner)
        sys.exit(128 + self._received)


def _leave_signals_to_main(then: Callable[[int], None] | None, worker_id: int) -> None:
    """In a data loader's worker: react to SIGTERM of the main process alone, which ends its workers with that signal.

    A signal to the process group must not end the workers, because the main process still needs their batches.
    """

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=wait, daemon=True).start()
    if then is not None:
        then(worker_id)
