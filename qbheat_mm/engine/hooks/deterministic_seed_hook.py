"""Reproducible randomness across interruptions."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ..seeding import ITERATION, seed_generators, seed_loader


@HOOKS.register_module()
class DeterministicSeedHook(Hook):
    """Derive all randomness of the training from the seed, so that a resumed run equals an uninterrupted one.

    - Order and augmentation of the images, ``QuarterMask`` included, depend on (seed, epoch, index), in whichever
      process and worker the sample is read.
    - Randomness of the main processes, such as dropout, MoCo's shuffle and DINO's denoising, depends on (seed,
      iteration, rank).

    mmengine seeds workers when they start: persistent ones restart their stream on resume, others repeat the same
    augmentations every epoch. It also restarts the epoch of a checkpoint from within an epoch; here the run continues
    with the next batch. If ``randomness.seed`` is None, the seed is chosen once and read from the checkpoint on resume.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._resumed = {}
        self._epoch = self._began = self._batches = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the position within the epoch; checkpoints of stock runs lack it."""
        self._resumed = checkpoint.get('resume_point', {})

    def before_train(self, runner: Runner) -> None:
        """Seed the data loader."""
        loop, loader = runner.train_loop, runner.train_dataloader
        differing = runner._randomness_cfg.get('diff_rank_seed', False)
        self._seed = runner.seed - (dist.get_rank() if differing else 0)
        if getattr(loader, 'batch_sampler', None) is None:
            return  # no samples with an index, as in mmpretrain's vis_scheduler.py
        self._batches = seed_loader(loader, self._seed)
        if isinstance(loop, IterBasedTrainLoop):
            if hasattr(loader.sampler, 'skip'):  # newer mmengine's loop moves an infinite sampler there
                self._batches.start = runner.iter
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)  # older mmengine's has started
        elif runner.iter:
            self._skip_batches(runner, **self._resumed)

    def _skip_batches(self, runner: Runner, done: int = 0, batches: int | None = None) -> None:
        """Skip the batches of this epoch that were trained on."""
        total = len(runner.train_dataloader)
        if done and batches == total:
            self._batches.start = done
            runner.logger.info(
                f'Epoch {runner.epoch + 1} continues after batch {done} of {total}; the log counts the others from 1.'
            )
        elif done:
            runner.logger.warning(
                f'An epoch has {total} batches now and had {batches} when the run was interrupted after batch {done}: '
                f'epoch {runner.epoch + 1} starts over. To continue within the epoch, resume with the same data, batch '
                'size and number of processes.'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Record the iteration at which the epoch began, also if it was interrupted since."""
        self._epoch, self._began = runner.epoch, runner.iter
        if self._batches is not None:
            self._began -= self._batches.start
            self._batches.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Seed the main process."""
        seed_generators(ITERATION, self._seed, runner.iter, dist.get_rank())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the number of batches of the epoch that are done, and its total."""
        meta = checkpoint['meta']
        done = meta['iter'] - self._began if meta['epoch'] == self._epoch else 0  # else the epoch is over
        checkpoint['resume_point'] = dict(done=done, batches=len(runner.train_dataloader))
