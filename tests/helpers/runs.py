"""Trainings of a few iterations that are interrupted, resumed and compared."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from helpers.models import PIPELINE, qbheat_config
from qbheat_mm.checkpoint import read_checkpoint

NAMES = (f'short{number}' for number in itertools.count())  # mmengine wants another for each runner


def pretraining(work_dir: Path, images: Path, checkpoint: dict | None = None, draws: bool = True, **kwargs) -> Runner:
    """QB-Heat with dropped paths, two epochs of four batches; ``kwargs`` go on top of its config."""
    model = qbheat_config()
    model['backbone']['drop_path_rate'] = 0.2
    cfg = Config(
        dict(
            model=model,
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(type='ImageFolderDataset', data_root=str(images), with_label=False, pipeline=PIPELINE),
            ),
            train_cfg=kwargs.pop('train_cfg', dict(by_epoch=True, max_epochs=2)),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            param_scheduler=[dict(type='LinearLR', start_factor=0.1, end=6, by_epoch=False)],
            default_scope='mmpretrain',
            default_hooks=dict(
                checkpoint=dict(type='AtomicCheckpointHook', interval=1) | (checkpoint or {}),
                checkpoint_guard=dict(type='CheckpointGuardHook'),
            ),
            custom_hooks=[dict(type='PlainCheckpointHook')] + [dict(type='DeterministicSeedHook')] * draws,
            randomness=dict(seed=0, diff_rank_seed=True),
            work_dir=str(work_dir),
        )
    )
    cfg.merge_from_dict(kwargs)
    cfg.experiment_name = next(NAMES)
    return Runner.from_cfg(cfg)


class At(Hook):
    """Calls something after an iteration of the training, or of the validation."""

    priority = 'HIGH'

    def __init__(self, iteration: int, action, mode: str = 'train') -> None:
        self.iteration, self.action, self.mode = iteration, action, mode

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.mode == 'train' and runner.iter + 1 == self.iteration:
            self.action()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.mode == 'val' and runner.iter == self.iteration:
            self.action()


def same_bits(path: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights and state of the optimizer."""
    one, two = (read_checkpoint(each) for each in (path, other))
    moments = [
        {f'{i}.{name}': value for i, state in each['optimizer']['state'].items() for name, value in state.items()}
        for each in (one, two)
    ]
    return all(
        mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)
        for mine, its in ((one['state_dict'], two['state_dict']), moments)
    )
