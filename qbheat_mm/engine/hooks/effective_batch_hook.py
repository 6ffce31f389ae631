"""Log the effective batch size."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..runners import batch_size, optim_wrappers


@HOOKS.register_module()
class EffectiveBatchHook(Hook):
    """Before training, log the effective batch size and the peak learning rates.

    mmengine logs the factor of ``auto_scale_lr``, but not the result.
    """

    def before_train(self, runner: Runner) -> None:
        """Log one line."""
        loader, processes, batch = runner.train_dataloader, dist.get_world_size(), batch_size(runner)
        if batch is None:
            return
        wrappers = optim_wrappers(runner)
        accumulated = wrappers[0]._accumulative_counts
        rates = {
            group.get('initial_lr', group['lr']): None  # the schedulers' peak; a dict keeps the order
            for wrapper in wrappers
            for group in wrapper.optimizer.param_groups
        }
        base = (runner.cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        scaled = runner.cfg.get('auto_scale_lr', {}).get('enable') if base else False
        runner.logger.info(
            f'Effective batch: {processes} process(es) x {batch} images x {accumulated} accumulated = '
            f'{processes * batch * accumulated}; peak learning rate {", ".join(f"{rate:g}" for rate in rates)}'
            + (f', scaled from a batch of {base}' if scaled else ', as in the config')
            + f'; {len(loader.dataset)} images, {len(loader)} iterations an epoch.'
        )
        if scaled and accumulated > 1:
            runner.logger.warning(
                f'auto_scale_lr does not count the {accumulated} accumulated batches: scale the learning rate by hand.'
            )
