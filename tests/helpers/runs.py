"""Small QB-Heat runs on a CPU, interrupted, resumed and compared."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from helpers.models import PIPELINE, ROOT, qbheat_config
from qbheat_mm.checkpoint import read_checkpoint

NAMES = (f'run{number}' for number in itertools.count())  # mmengine wants another for each runner
PLAIN = dict(plain_checkpoint=dict(type='PlainCheckpointHook'))


def image_loader(images: Path | str, batch_size: int = 4, sampler: str = 'DefaultSampler', **dataset) -> dict:
    """Config of a dataloader of QB-Heat's samples."""
    fields = dict(type='ImageFolderDataset', data_root=str(images), with_label=False, pipeline=PIPELINE)
    return dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type=sampler, shuffle=not dataset.get('test_mode', False)),
        collate_fn=dict(type='default_collate'),
        dataset=fields | dataset,
    )


def run_config(work_dir: Path, images: Path, **kwargs) -> Config:
    """The config of a run of one epoch; ``kwargs`` take the place of its fields."""
    cfg = dict(
        model=qbheat_config(),
        train_dataloader=image_loader(images),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_scope='mmpretrain',
        default_hooks=PLAIN,
        randomness=dict(seed=0),
        work_dir=str(work_dir),
        experiment_name=next(NAMES),
    )
    return Config(dict(cfg, **kwargs))


def build_runner(work_dir: Path, images: Path, sampler: str = 'DefaultSampler', **kwargs) -> Runner:
    """The runner of :func:`run_config`, with hooks for broken images and losses."""
    hooks = [dict(type='InvalidLossHook'), dict(type='SkippedImagesHook'), *kwargs.pop('custom_hooks', ())]
    loader = image_loader(images, sampler=sampler)
    kwargs['default_hooks'] = PLAIN | kwargs.get('default_hooks', {})
    return Runner.from_cfg(run_config(work_dir, images, train_dataloader=loader, custom_hooks=hooks, **kwargs))


def pretraining(work_dir: Path, images: Path, checkpoint: dict | None = None, seeded: bool = True, **kwargs) -> Runner:
    """QB-Heat with dropped paths, two epochs of four batches; ``kwargs`` are merged into its config."""
    hooks = dict(
        PLAIN,
        checkpoint=dict(type='AtomicCheckpointHook', interval=1) | (checkpoint or {}),
        preemption=dict(type='PreemptionHook'),
    )
    cfg = run_config(
        work_dir,
        images,
        train_dataloader=image_loader(images, batch_size=2),
        train_cfg=kwargs.pop('train_cfg', dict(by_epoch=True, max_epochs=2)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, end=6, by_epoch=False)],
        default_hooks=hooks | (dict(seed=dict(type='DeterministicSeedHook')) if seeded else {}),
        randomness=dict(seed=0, diff_rank_seed=True),
    )
    cfg.model.backbone.drop_path_rate = 0.2
    cfg.merge_from_dict(kwargs)
    return Runner.from_cfg(cfg)


def write_config(folder: Path, *bases: str, **fields) -> None:
    """Write ``config.py``: ``fields`` on top of other configs, of the runtime if none is named."""
    fields['_base_'] = list(bases) or [f'{ROOT}/configs/_base_/default_runtime.py']
    lines = [f'{name} = {value!r}\n' for name, value in fields.items()]
    (folder / 'config.py').write_text(''.join(lines))


def python_path(*folders: Path) -> str:
    """These folders and this checkout before what is on Python's path."""
    return os.pathsep.join([*map(str, folders), str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])


def run(*command: str | Path, cwd: Path | None = None, fails: bool = False, **env: str) -> str:
    """The output of a command that must succeed, or fail, on one thread and with this checkout on Python's path."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=os.environ | dict(PYTHONPATH=python_path(), OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1') | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert bool(done.returncode) == fails, done.stdout[-4000:]
    return done.stdout


def log_of(work_dir: Path) -> str:
    """The text of all logs."""
    return ''.join(path.read_text() for path in work_dir.glob('*/*.log'))


def send_sigterm(number: int = signal.SIGTERM) -> None:
    """To this process, or another signal."""
    os.kill(os.getpid(), number)


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
