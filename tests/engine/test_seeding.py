"""What is drawn for a sample follows from seed, epoch and index, and from nothing else."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset

from qbheat_mm.engine.seeding import ITERATION, SAMPLE, seed_generators, seed_loader


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Draws(Dataset):
    """Each sample is what the three generators give for it."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return (index, *draw())


def samples(
    seed=0, epoch=0, num_workers=0, processes=1, rank=0, start=0, persistent=False, sampler=DefaultSampler, batches=None
) -> list[tuple[int, float, float, float]]:
    """The samples of one pass, in the order of the loader."""
    dataset = Draws()
    order = sampler(dataset, shuffle=True, seed=99)
    order.rank, order.world_size = rank, processes
    if sampler is DefaultSampler:
        order.num_samples, order.total_size = -(-10 // processes), -(-10 // processes) * processes
    loader = DataLoader(
        dataset,
        batch_sampler=BatchSampler(order, batch_size=3, drop_last=False),
        num_workers=num_workers,
        persistent_workers=persistent,
        collate_fn=list,
    )
    seeded = seed_loader(loader, seed)
    if persistent:
        list(loader)  # an epoch before
    order.set_epoch(epoch)
    seeded.start = start
    passed = []
    for batch in loader:
        passed += batch
        if batches and len(passed) >= 3 * batches:
            break
    return passed


def test_all_three_generators_differ_between_samples_epochs_and_seeds():
    runs = [samples(), samples(epoch=1), samples(seed=1)]
    for place in (1, 2, 3):
        assert len({sample[place] for run in runs for sample in run}) == 30


def test_the_same_seed_epoch_and_index_draw_the_same():
    assert samples(seed=3, epoch=5) == samples(seed=3, epoch=5)


@pytest.mark.parametrize(('num_workers', 'persistent'), [(1, False), (2, True)])
def test_the_number_of_workers_changes_nothing(num_workers, persistent):
    random.seed(1)
    assert samples(epoch=2, num_workers=num_workers, persistent=persistent) == samples(epoch=2)


def test_an_epoch_goes_on_after_any_batch():
    whole = samples(epoch=1)
    for start in range(5):
        assert samples(epoch=1, start=start) == whole[3 * start :]


def test_the_number_of_processes_changes_nothing():
    parts = [samples(epoch=1, processes=2, rank=rank) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(samples(epoch=1))


def test_the_order_follows_from_the_seed_too():
    orders = [[sample[0] for sample in samples(seed=seed, epoch=epoch)] for seed, epoch in ((0, 0), (0, 1), (7, 0))]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_an_endless_sampler_draws_anew_on_each_pass():
    first = samples(sampler=InfiniteSampler, batches=10)
    assert len({sample[0] for sample in first[:10]}) == 10
    assert {sample[0] for sample in first[:10]} == {sample[0] for sample in first[10:20]}
    assert len({sample[1:] for sample in first}) == len(first)
    assert samples(sampler=InfiniteSampler, batches=10, num_workers=1) == first


def test_indices_that_another_loader_asks_for_still_work():
    loader = DataLoader(Draws(), batch_size=2, collate_fn=list)
    seed_loader(loader, 0)
    assert loader.batch_size == 2
    assert len(loader) == 5
    assert loader.dataset[3][0] == 3


def test_purposes_and_numbers_do_not_share_a_seed():
    drawn = set()
    for purpose in (SAMPLE, ITERATION):
        for numbers in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (2**40, 0, 0), (0, 0, 0)):
            seed_generators(purpose, *numbers)
            drawn.add(draw())
    assert len(drawn) == 10


def test_a_sampler_that_counts_no_epochs_draws_anew_in_each():
    dataset = Draws()
    batches = seed_loader(DataLoader(dataset, batch_size=2, collate_fn=list), 0)
    passes = []
    for batches.epoch in (0, 1, 0):
        passes.append([draw for batch in batches for draw in dataset.__getitems__(batch)])
    assert passes[0] == passes[2] != passes[1]
