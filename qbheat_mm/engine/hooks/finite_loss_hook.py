"""Stop at the first loss that is not a number."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop the run when the loss becomes infinite or NaN, before a checkpoint with such weights is written.

    Args:
        interval: Iterations between checks. A check waits for the device, so on a GPU check every now and then;
            the hook also checks at the end of each epoch, before the checkpoint.
    """

    priority = 'NORMAL'  # before CheckpointHook, which is VERY_LOW

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Check the loss.

        Raises:
            FloatingPointError: With the iteration, the learning rate and the last checkpoint.
        """
        if not (
            self.every_n_train_iters(runner, self.interval) or self.end_of_epoch(runner.train_dataloader, batch_idx)
        ):
            return
        loss = outputs['loss']
        if torch.isfinite(loss).all():
            return
        rates = ', '.join(f'{rate:.3g}' for rate in runner.optim_wrapper.get_lr()['lr'][:1])
        last = find_latest_checkpoint(runner.work_dir)
        raise FloatingPointError(
            f'The loss is {loss.item()} at iteration {runner.iter + 1} (epoch {runner.epoch + 1}, learning rate '
            f'{rates}). The last checkpoint from before: {last or "none yet"}. Lower the learning rate, clip the '
            'gradient (optim_wrapper.clip_grad), or train in float32 or bf16 instead of fp16.'
        )
