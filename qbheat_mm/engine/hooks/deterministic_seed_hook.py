"""A resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ..seeding import ITERATION, seed_generators, seed_loader


@HOOKS.register_module()
class DeterministicSeedHook(Hook):
    """Derive every random draw of the training from the seed of the run, so that a resumed run repeats them.

    - Order and augmentation of the images, ``QuarterMask`` included: from (seed, epoch, index of the sample), in
      whichever process and worker the sample is read.
    - What the main processes draw, like dropout, MoCo's shuffle, DINO's denoising: from (seed, iteration, rank).

    mmengine seeds workers when they start: persistent ones begin their stream again on resume, others repeat the same
    augmentations every epoch. And a checkpoint from the middle of an epoch starts that epoch over; here it goes on
    with the next batch. A seed that the config leaves open (``randomness.seed=None``) is drawn once and then taken
    from the checkpoint.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._resumed = {}
        self._epoch = self._began = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read where in its epoch the run was; checkpoints of other runs do not tell."""
        self._resumed = checkpoint.get('resume_point', {})

    def before_train(self, runner: Runner) -> None:
        """Take hold of the data loader."""
        loop, loader = runner.train_loop, runner.train_dataloader
        differing = runner._randomness_cfg.get('diff_rank_seed', False)
        self._seed = runner.seed - (dist.get_rank() if differing else 0)
        self._batches = seed_loader(loader, self._seed)
        if isinstance(loop, IterBasedTrainLoop):
            if hasattr(loader.sampler, 'skip'):  # newer mmengine's loop has an endless sampler start there
                self._batches.start = runner.iter
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)  # older mmengine's has begun
        elif runner.iter:
            self._go_on(runner, **self._resumed)

    def _go_on(self, runner: Runner, done: int = 0, batches: int | None = None) -> None:
        """Leave out the batches of this epoch that were trained on."""
        total = len(runner.train_dataloader)
        if done and batches == total:
            self._batches.start = done
            runner.logger.info(
                f'Epoch {runner.epoch + 1} goes on after batch {done} of {total}; the log counts the others from 1.'
            )
        elif done:
            runner.logger.warning(
                f'An epoch has {total} batches now and had {batches} when the run was interrupted after batch {done}: '
                f'epoch {runner.epoch + 1} starts over. To go on at the same place, resume with the same data, batch '
                'size and number of processes.'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Note the iteration at which the epoch begins, or began before it was interrupted."""
        self._epoch, self._began = runner.epoch, runner.iter - self._batches.start
        self._batches.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Seed the main process."""
        seed_generators(ITERATION, self._seed, runner.iter, dist.get_rank())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write down how many batches of the epoch are done, and of how many."""
        meta = checkpoint['meta']
        done = meta['iter'] - self._began if meta['epoch'] == self._epoch else 0  # else the epoch is over
        checkpoint['resume_point'] = dict(done=done, batches=len(runner.train_dataloader))
