"""Refuse a queue that batches do not fill evenly."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model


@HOOKS.register_module()
class QueueCheckHook(Hook):
    """Before MoCo trains, check what mmpretrain's asserts in the middle of an iteration, without the numbers."""

    def before_train(self, runner: Runner) -> None:
        """Check.

        Raises:
            ValueError: If the global batch does not divide the queue, or the last batch of an epoch is smaller.
        """
        model = get_ori_model(runner.model)
        loader = runner.train_dataloader
        processes, queue = dist.get_world_size(), model.queue_len
        batch = processes * loader.batch_size
        if queue % batch:
            fitting = [
                size for size in range(1, min(queue, 4 * batch) // processes + 1) if not queue % (size * processes)
            ]
            nearest = min(fitting, key=lambda size: abs(size - loader.batch_size), default=None)
            remedy = (
                f'train_dataloader.batch_size={nearest} would do'
                if nearest
                else f'no batch of {processes} processes would do'
            )
            raise ValueError(
                f'MoCo: model.queue_len={queue} is not a multiple of the global batch of {processes} process(es) x '
                f'{loader.batch_size} = {batch}; {remedy}, or model.queue_len={max(queue // batch, 1) * batch}.'
            )
        if not loader.drop_last and len(loader.dataset) % batch:
            raise ValueError(
                f'MoCo: the last batch of an epoch has {len(loader.dataset) % batch} of {batch} images and does not '
                'fit into the queue; set train_dataloader.drop_last=True.'
            )
