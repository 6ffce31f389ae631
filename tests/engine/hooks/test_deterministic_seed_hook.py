"""A resumed run ends with the bits of the run that went through."""

import logging

import pytest
import torch
from helpers.runs import At, pretraining, same_bits

EVERY_ITERATION = dict(by_epoch=False, interval=1)


@pytest.fixture(scope='module')
def whole(images, tmp_path_factory):
    """A run that went through, with a checkpoint after each iteration."""
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    folder = tmp_path_factory.mktemp('whole')
    pretraining(folder, images, EVERY_ITERATION).train()
    return folder


def resume(work_dir, images, checkpoint, **kwargs):
    runner = pretraining(work_dir, images, EVERY_ITERATION, resume=True, load_from=str(checkpoint), **kwargs)
    runner.train()
    return runner


@pytest.mark.parametrize('iteration', [3, 4, 6])  # in an epoch, at its last batch, in the next
@pytest.mark.parametrize('workers', [dict(), dict(num_workers=1, persistent_workers=True)], ids=['main', 'worker'])
def test_a_run_goes_on_from_any_iteration(whole, images, tmp_path, iteration, workers):
    runner = resume(tmp_path, images, whole / f'iter_{iteration}.pth', train_dataloader=workers)
    assert runner.iter == 8
    assert same_bits(tmp_path / 'iter_8.pth', whole / 'iter_8.pth')


def test_without_the_hook_it_does_not(whole, images, tmp_path):
    """What the comparison above is worth."""
    resume(tmp_path, images, whole / 'iter_4.pth', seeded=False)
    assert not same_bits(tmp_path / 'iter_8.pth', whole / 'iter_8.pth')


def test_what_others_draw_in_between_changes_nothing(whole, images, tmp_path):
    runner = pretraining(tmp_path, images, EVERY_ITERATION)
    runner.register_hook(At(3, lambda: torch.rand(1)))
    runner.train()
    assert same_bits(tmp_path / 'iter_8.pth', whole / 'iter_8.pth')


def test_a_seed_that_was_left_open_is_taken_from_the_checkpoint(images, tmp_path):
    free = dict(seed=None, diff_rank_seed=True)
    pretraining(tmp_path / 'whole', images, EVERY_ITERATION, randomness=free).train()
    resume(tmp_path / 'resumed', images, tmp_path / 'whole' / 'iter_3.pth', randomness=free)
    assert same_bits(tmp_path / 'resumed' / 'iter_8.pth', tmp_path / 'whole' / 'iter_8.pth')


def test_endless_loops_go_on_too(images, tmp_path):
    endless = dict(
        train_cfg=dict(by_epoch=False, max_iters=10),  # eight images: more than two passes
        train_dataloader=dict(sampler=dict(type='InfiniteSampler'), num_workers=1, persistent_workers=True),
    )
    pretraining(tmp_path / 'whole', images, EVERY_ITERATION, **endless).train()
    resume(tmp_path / 'resumed', images, tmp_path / 'whole' / 'iter_6.pth', **endless)
    assert same_bits(tmp_path / 'resumed' / 'iter_10.pth', tmp_path / 'whole' / 'iter_10.pth')


def test_another_batch_size_starts_the_epoch_over_and_says_so(whole, images, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger='mmengine'):
        runner = resume(tmp_path, images, whole / 'iter_6.pth', train_dataloader=dict(batch_size=4))
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'An epoch has 2 batches now and had 4 when the run was interrupted after batch 2: epoch 2 starts over' in log
    assert runner.iter == 6 + 2


def test_a_checkpoint_of_another_run_is_resumed_from_as_ever(images, tmp_path):
    pretraining(tmp_path / 'stock', images, seeded=False, train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    runner = resume(tmp_path / 'ours', images, tmp_path / 'stock' / 'epoch_1.pth')
    assert runner.iter == 8
