"""Check MoCo's queue against the batch size."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from ..runners import batch_size


@HOOKS.register_module()
class QueueCheckHook(Hook):
    """Before MoCo trains, check what mmpretrain asserts within an iteration without naming the numbers."""

    def before_train(self, runner: Runner) -> None:
        """Check.

        Raises:
            ValueError: If the global batch does not divide the queue, or the last batch of an epoch is smaller.
        """
        loader, processes, size = runner.train_dataloader, dist.get_world_size(), batch_size(runner)
        queue = getattr(get_ori_model(runner.model), 'queue_len', None)
        if queue is None or size is None:
            return  # not MoCo
        batch = processes * size
        if queue % batch:
            fitting = [
                each for each in range(1, min(queue, 4 * batch) // processes + 1) if not queue % (each * processes)
            ]
            nearest = min(fitting, key=lambda each: abs(each - size), default=None)
            remedy = f'train_dataloader.batch_size={nearest}' if nearest else f'no batch of {processes} processes'
            raise ValueError(
                f'MoCo: model.queue_len={queue} is not a multiple of the global batch of {processes} process(es) x '
                f'{size} = {batch}; {remedy} would do, or model.queue_len={max(queue // batch, 1) * batch}.'
            )
        if not loader.drop_last and len(loader.dataset) % batch:
            raise ValueError(
                f'MoCo: the last batch of an epoch has {len(loader.dataset) % batch} of {batch} images and does not '
                'fit into the queue; set train_dataloader.drop_last=True.'
            )
