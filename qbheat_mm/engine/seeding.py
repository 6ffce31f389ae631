"""Random draws that follow from what is drawn for, not from what was drawn before.

A generator that runs on through a training has a state in each of its processes, which a killed run takes with it.
Here every sample, and every iteration of the main process, begins with generators of its own seed: a resumed run has
nothing to restore, and neither the number of workers nor a validation in between changes what is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice, repeat

import numpy as np
import torch
from mmengine import dist
from mmengine.dataset import InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset

SAMPLE, ITERATION = 1, 2  # two purposes never share a seed


def seed_generators(purpose: int, *numbers: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, those of the GPUs too, from a few numbers >= 0."""
    words = np.random.SeedSequence((purpose, *numbers)).generate_state(4)
    seed = int(words[:2].view(np.uint64)[0]) >> 1  # PyTorch takes 63 bits
    random.seed(seed)
    np.random.seed(words)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed spends its time on GPUs that are not there
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)


class SeededSamples:
    """The ``__getitems__`` of a dataset, which PyTorch's data loader prefers to ``__getitem__``.

    Args:
        dataset: Any dataset with ``__getitem__``.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, draws: list[tuple[int, int, int]]) -> list:
        """The samples of one batch, each drawn with the generators of its seed, epoch and index."""
        samples = []
        for draw in draws:
            seed_generators(SAMPLE, *draw)
            samples.append(self.dataset[draw[-1]])
        return samples


class SeededBatches:
    """Goes round a batch sampler: sends the seed and the epoch along with each index.

    Args:
        batch_sampler: The data loader's own.
        seed: Of the run; the same in all processes.
    """

    def __init__(self, batch_sampler: BatchSampler, seed: int) -> None:
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.start = 0  # batches that the next pass leaves out, without loading them
        self.epoch = 0  # of the next pass, where the sampler does not count them

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        start, self.start = self.start, 0
        if isinstance(self.sampler, InfiniteSampler):  # it was told itself where to start
            rank, processes = dist.get_dist_info()
            size = len(self.sampler.dataset)
            epochs = ((rank + place * processes) // size for place in count(start * self.batch_size))
            batches = iter(self.batch_sampler)
        else:
            epochs = repeat(getattr(self.sampler, 'epoch', self.epoch))
            batches = islice(self.batch_sampler, start, None)
        for batch in batches:
            yield [(self.seed, next(epochs), index) for index in batch]

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str):
        if name == 'batch_sampler':  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


def seed_loader(loader: DataLoader, seed: int) -> SeededBatches:
    """Let ``loader`` draw from (seed, epoch, index of the sample), its sampler's order included.

    Call it before the loader is iterated over.
    """
    batches = SeededBatches(loader.batch_sampler, seed)
    sampler = batches.sampler
    if hasattr(sampler, 'seed'):
        sampler.seed = seed
    if hasattr(sampler, 'indices'):  # mmengine's InfiniteSampler, whose stream may have begun
        sampler.indices = sampler._indices_of_rank()
    vars(loader)['batch_sampler'] = batches  # by the front door PyTorch refuses
    loader.dataset.__getitems__ = SeededSamples(loader.dataset)
    loader._iterator = None  # of persistent workers that have started already
    return batches
