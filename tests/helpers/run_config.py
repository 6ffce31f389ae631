"""The config of a QB-Heat run of two iterations an epoch on a CPU."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from helpers.models import PIPELINE, qbheat_config, write_images

GUARDED = dict(checkpoint_guard=dict(type='CheckpointGuardHook'))


def runner_config(folder: Path, **kwargs) -> Config:
    """A run of two iterations; the folder of its images is made."""
    if not (folder / 'images').exists():
        write_images(folder / 'images', 8)
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='ImageFolderDataset',
            data_root=str(folder / 'images'),
            with_label=False,
            pipeline=PIPELINE,
        ),
    )
    cfg = dict(
        model=qbheat_config(),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_scope='mmpretrain',
        default_hooks=GUARDED,
        custom_hooks=[dict(type='PlainCheckpointHook')],
        randomness=dict(seed=0),
        work_dir=str(folder / 'run'),
        experiment_name=f'guard{len(kwargs)}{id(kwargs)}',
    )
    return Config(dict(cfg, **kwargs))
