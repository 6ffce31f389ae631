"""Stateless seeding: randomness depends on (seed, epoch, index), not on history.

Generators are seeded anew for every sample, and for every iteration of the main process. A resumed run has no state
to restore, and neither the number of workers nor a validation in between changes the random numbers.
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

SAMPLE, ITERATION = 1, 2  # purposes, which never share a seed


def seed_generators(purpose: int, *numbers: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, on GPUs too, from some numbers >= 0."""
    words = np.random.SeedSequence((purpose, *numbers)).generate_state(4)
    seed = int(words[:2].view(np.uint64)[0]) >> 1  # PyTorch takes 63 bits
    random.seed(seed)
    np.random.seed(words)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is slow without a GPU
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)


class SeededSamples:
    """The ``__getitems__`` of a dataset, which PyTorch's data loader prefers to ``__getitem__``.

    Args:
        dataset: Any dataset with ``__getitem__``.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, keys: list[tuple[int, int, int]]) -> list:
        """The samples of one batch, each with generators seeded by its key (seed, epoch, index)."""
        samples = []
        for key in keys:
            seed_generators(SAMPLE, *key)
            samples.append(self.dataset[key[-1]])
        return samples


class SeededBatches:
    """A batch sampler that yields (seed, epoch, index) instead of each index.

    Args:
        batch_sampler: The data loader's own.
        seed: Of the run; the same in all processes.
    """

    def __init__(self, batch_sampler: BatchSampler, seed: int) -> None:
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.start = 0  # number of batches that the next pass skips without loading them
        self.epoch = 0  # of the next pass, if the sampler does not count them

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        start, self.start = self.start, 0
        if isinstance(self.sampler, InfiniteSampler):  # mmengine's loop moves it to the start
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
        if name == 'batch_sampler':  # during unpickling
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


def seed_loader(loader: DataLoader, seed: int) -> SeededBatches:
    """Seed the samples and the sampler of ``loader``; called before its first iteration."""
    batches = SeededBatches(loader.batch_sampler, seed)
    sampler = batches.sampler
    if hasattr(sampler, 'seed'):
        sampler.seed = seed
    if hasattr(sampler, 'indices'):  # mmengine's InfiniteSampler, which may have started
        sampler.indices = sampler._indices_of_rank()
    vars(loader)['batch_sampler'] = batches  # PyTorch refuses to set the attribute
    loader.dataset.__getitems__ = SeededSamples(loader.dataset)
    loader._iterator = None  # of persistent workers that have already started
    return batches
