"""Batch, learning rate and schedule: what config and batch give, also for a resumed run."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ..runners import batch_size
from ..schedules import Plan, effective_batch, peak_rates, unmatched_ends


@HOOKS.register_module()
class EffectiveBatchHook(Hook):
    """Before training, log the effective batch size and the peak learning rates that the optimizer has.

    mmengine logs the factor of ``auto_scale_lr``, but not the result. It also restores the rates and the schedule of a
    checkpoint as they were, whatever config, batch and data are now. Here a resumed run follows its config: the
    settings of the optimizer are those of the config, the rate is scaled for the batch, and the schedule is recomputed
    at the epoch that is resumed. One line of the log names what changed. A schedule that does not end where training
    ends is warned of.
    """

    priority = 'ABOVE_NORMAL'  # after DeterministicSeedHook, before hooks that read the count of iterations

    def __init__(self) -> None:
        self._plan, self._before = None, {}

    def before_run(self, runner: Runner) -> None:
        """Record the settings before a checkpoint replaces them."""
        if hasattr(getattr(runner, 'optim_wrapper', None), 'param_groups'):  # a training, of a Runner
            self._plan = Plan(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read what the interrupted run trained with; other checkpoints lack it."""
        before = checkpoint.get('run')
        self._before = before if isinstance(before, dict) else {}

    def before_train(self, runner: Runner) -> None:
        """Follow the config, and log one line, two after a resume."""
        if batch_size(runner) is None:
            return
        if runner._resume and runner.iter and self._plan:
            changes = self._plan.follow(runner)
            present = self._describe(runner)
            counts = [
                f'{name} {self._before[name]} -> {value}'
                for name, value in present.items()
                if name in self._before and self._before[name] != value
            ]
            runner.logger.info(
                f'Resumed after epoch {runner.epoch}, iteration {runner.iter}: '
                + (
                    f'changed are {"; ".join(counts + changes)}. Optimizer and schedule follow the config; the '
                    f'learning rate is {runner.optim_wrapper.param_groups[0]["lr"]:g} now.'
                    if counts or changes
                    else 'batch, data, schedule and rate are unchanged.'
                )
            )
        self._log_batch(runner)
        for problem in unmatched_ends(runner):
            runner.logger.warning(f'Schedule: {problem}. Change train_cfg.max_epochs or param_scheduler to match.')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what the run trains with."""
        if batch_size(runner) is not None:
            checkpoint['run'] = self._describe(runner)

    @staticmethod
    def _describe(runner: Runner) -> dict:
        processes, batch, accumulated = effective_batch(runner)
        iterations = isinstance(runner.train_loop, IterBasedTrainLoop)
        return {
            'batch': processes * batch * accumulated,
            'images': len(runner.train_dataloader.dataset),
            'iterations' if iterations else 'epochs': runner.max_iters if iterations else runner.max_epochs,
        }

    @staticmethod
    def _log_batch(runner: Runner) -> None:
        loader, (processes, batch, accumulated) = runner.train_dataloader, effective_batch(runner)
        base = (runner.cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        scaled = runner.cfg.get('auto_scale_lr', {}).get('enable') if base else False
        runner.logger.info(
            f'Effective batch: {processes} process(es) x {batch} images x {accumulated} accumulated = '
            f'{processes * batch * accumulated}; peak learning rate '
            f'{", ".join(f"{rate:g}" for rate in peak_rates(runner))}'
            + (f', scaled from a batch of {base}' if scaled else ', as in the config')
            + f'; {len(loader.dataset)} images, {len(loader)} iterations an epoch.'
        )
        if scaled and accumulated > 1:
            runner.logger.warning(
                f'auto_scale_lr does not count the {accumulated} accumulated batches: scale the learning rate by hand.'
            )
