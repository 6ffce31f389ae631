"""A resumed run has the rates of a run that had its batch, images, epochs and rate from the start."""

import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from helpers.runs import NAMES, At, log_of, send_sigterm
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from qbheat_mm.engine.schedules import epoch_options

WARM = dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True)
SCHEDULES = dict(
    cosine=[WARM, dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True)],
    epochs=[dict(type='CosineAnnealingLR', by_epoch=True, eta_min=1e-6)],
    steps=[dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False), dict(type='MultiStepLR', milestones=[2, 3])],
    momentum=[WARM, dict(type='CosineAnnealingMomentum', by_epoch=True, convert_to_iter_based=True)],
    none=None,
)
CHECKPOINT = dict(type='AtomicCheckpointHook', interval=1)
FIRST = dict(batch=2, images=12, epochs=4, lr=0.1, decay=0.0)


@MODELS.register_module()
class OneWeight(nn.Module):
    """Trains without looking at its data."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def train_step(self, data, optim_wrapper):
        loss = self.weight.mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


@DATASETS.register_module()
class Numbers(Dataset):
    """The numbers below another."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Rates(Hook):
    """Records the learning rate and momentum of every iteration, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs = defaultdict(list)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        (group,) = runner.optim_wrapper.param_groups
        self.epochs[runner.epoch].append((group['lr'], group.get('momentum'), group['weight_decay']))


def build(work_dir: Path, schedule='cosine', batch=2, images=12, epochs=4, lr=0.1, decay=0.0, **kwargs) -> Runner:
    hooks = dict(
        plain_checkpoint='PlainCheckpointHook',
        effective_batch='EffectiveBatchHook',
        seed='DeterministicSeedHook',
        preemption='PreemptionHook',
    )
    loader = dict(batch_size=batch, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True))
    cfg = dict(
        model=dict(type='OneWeight'),
        train_dataloader=dict(loader, dataset=dict(type='Numbers', count=images)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=decay)),
        param_scheduler=SCHEDULES[schedule],
        auto_scale_lr=dict(base_batch_size=4, enable=True),
        default_hooks={name: dict(type=kind) for name, kind in hooks.items()} | dict(checkpoint=CHECKPOINT),
        work_dir=str(work_dir),
        experiment_name=next(NAMES),
        default_scope='mmengine',
        randomness=dict(seed=0),
    )
    return Runner.from_cfg(Config(cfg | kwargs))


def rates(runner: Runner) -> dict[int, list]:
    """The rates of the epochs that ``runner`` trains."""
    hook = Rates()
    runner.register_hook(hook)
    runner.train()
    return hook.epochs


def cases(count: int) -> list:
    """Generated combinations: a schedule, what changes, and the epoch that is resumed after."""
    draw = random.Random(0)
    values = dict(batch=[1, 3, 4, 5], images=[4, 7, 30], epochs=[3, 6, 9], lr=[0.03, 1.0], decay=[0.1])
    found = []
    for number in range(count):
        changed = draw.sample(sorted(values), draw.randint(1, 3))
        changes = {name: draw.choice(values[name]) for name in changed}
        found.append((sorted(SCHEDULES)[number % len(SCHEDULES)], changes, draw.choice([1, 2])))
    return found


@pytest.mark.parametrize(('schedule', 'changes', 'epoch'), cases(15))
def test_a_resumed_run_has_the_rates_of_its_config(tmp_path, schedule, changes, epoch):
    build(tmp_path / 'one', schedule, **FIRST).train()
    whole = rates(build(tmp_path / 'whole', schedule, **FIRST | changes))
    checkpoint = str(tmp_path / 'one' / f'epoch_{epoch}.pth')
    run = build(tmp_path / 'two', schedule, **FIRST | changes, resume=True, load_from=checkpoint)
    resumed = rates(run)
    assert sorted(resumed) == list(range(epoch, (FIRST | changes)['epochs']))
    for number, part in resumed.items():
        assert part == whole[number]
    assert run.iter == run.max_iters
    log = log_of(tmp_path / 'two')
    assert f'peak learning rate {run.optim_wrapper.param_groups[0].get("initial_lr", part[0][0]):g}' in log
    for name, old in FIRST.items():
        if name in changes and name in ('batch', 'images', 'epochs') and changes[name] != old:
            assert f'{name} {old} -> {changes[name]}' in log
    assert log.count('Resumed after epoch') == 1


def test_an_unchanged_run_continues_with_the_state_of_its_checkpoint(tmp_path):
    build(tmp_path, epochs=4).train()
    whole = rates(build(tmp_path / 'whole', epochs=4))
    run = build(tmp_path / 'two', epochs=4, resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    assert rates(run)[3] == whole[3]
    assert 'batch, data, schedule and rate are unchanged' in log_of(tmp_path / 'two')


@pytest.mark.parametrize(('batch', 'epoch_starts_over'), [(2, False), (3, True)])
def test_an_epoch_that_starts_over_has_its_rates_again(tmp_path, batch, epoch_starts_over):
    cut = build(tmp_path / 'cut')
    cut.register_hook(At(9, send_sigterm))
    with pytest.raises(SystemExit):
        cut.train()
    whole = rates(build(tmp_path / 'whole', batch=batch))
    resumed = rates(build(tmp_path / 'cut', batch=batch, resume=True))
    assert resumed[1] == (whole[1] if epoch_starts_over else whole[1][3:])
    assert resumed[2] == whole[2]


def test_iterations_keep_their_schedule_with_another_batch(tmp_path):
    kwargs = dict(
        train_cfg=dict(by_epoch=False, max_iters=8),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=8, by_epoch=False)],
    )
    hooks = dict(plain_checkpoint=dict(type='PlainCheckpointHook'), effective_batch=dict(type='EffectiveBatchHook'))
    hooks['checkpoint'] = dict(type='AtomicCheckpointHook', by_epoch=False, interval=4)
    build(tmp_path / 'one', default_hooks=hooks, **kwargs).train()
    whole = rates(build(tmp_path / 'whole', batch=4, default_hooks=hooks, **kwargs))
    path = str(tmp_path / 'one' / 'iter_4.pth')
    resumed = rates(build(tmp_path / 'two', batch=4, default_hooks=hooks, resume=True, load_from=path, **kwargs))
    values = [each for part in resumed.values() for each in part]
    assert values == [each for part in whole.values() for each in part][4:]


@pytest.mark.parametrize(
    ('schedule', 'text'),
    [
        (
            [dict(type='CosineAnnealingLR', end=4)],
            'is made to end at epoch 4, but training ends at epoch 2: its lr stops',
        ),
        ([dict(type='CosineAnnealingLR', end=1)], 'ends after 50 % of the training: its lr stays there'),
        ([dict(type='MultiStepLR', milestones=[1, 3], end=4)], 'is made to end at epoch 4'),
        ([dict(type='LinearLR', end=1)], None),
        ([dict(type='MultiStepLR', milestones=[1])], None),
        ([dict(type='CosineAnnealingLR', end=2, convert_to_iter_based=True)], None),
    ],
)
def test_a_schedule_that_does_not_end_with_the_training_is_told(tmp_path, schedule, text):
    build(tmp_path, epochs=2, param_scheduler=schedule).train()
    log = log_of(tmp_path)
    assert (text in log) if text else ('Schedule: ' not in log)


def test_the_number_of_epochs_takes_the_schedule_along():
    cfg = Config(
        dict(
            train_cfg=dict(max_epochs=100),
            param_scheduler=[
                dict(type='LinearLR', end=5),
                dict(type='CosineAnnealingLR', begin=5, end=100, T_max=95),
                dict(type='LinearLR', by_epoch=False, end=100),
            ],
        )
    )
    assert epoch_options(cfg, 20) == {
        'train_cfg.max_epochs': 20,
        'param_scheduler.1.end': 20,
        'param_scheduler.1.T_max': 15,
    }
    with pytest.raises(ValueError, match=r'5 epochs do not exceed the warm-up of 5: .*param_scheduler\.0\.end'):
        epoch_options(cfg, 5)
