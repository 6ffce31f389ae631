"""Throughput and memory in the log."""

from __future__ import annotations

import resource

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..runners import batch_size


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Log images per second over all processes, data loading included, and without a GPU the peak memory in MiB.

    They appear in each line of the log and as the scalars ``train/images_per_sec`` and ``train/memory`` (of the main
    process). mmengine itself logs the memory of a GPU.
    """

    priority = 'NORMAL'  # after IterTimerHook, which is registered before, and before LoggerHook

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Add both to the message hub, from which the log is written."""
        hub, batch = runner.message_hub, batch_size(runner)
        if batch and 'train/time' in hub.log_scalars:  # else the config has no IterTimerHook
            seconds = hub.get_scalar('train/time').mean(runner.log_processor.window_size)
            speed = batch * dist.get_world_size() / max(seconds, 1e-9)
            hub.update_scalar('train/images_per_sec', speed, resumed=False)
        if not torch.cuda.is_available():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
            hub.update_scalar('train/memory', peak, resumed=False)
