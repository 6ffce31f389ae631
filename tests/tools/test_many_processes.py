"""Two processes on a CPU, through the scripts that people start them with."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import ROOT, TINY_ARCH, qbheat_config, write_images
from helpers.runs import image_loader, run, write_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')

# What each process trained on, and the loss and gradients that came of it.
RECORDER = """
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.utils import get_ori_model

@HOOKS.register_module()
class Recorder(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.samples = [(each.img_path, each.visible_origin) for each in data_batch['data_samples']]
        self.grads = {}
        if not hasattr(self, 'step'):
            self.step = runner.optim_wrapper.optimizer.step
            runner.optim_wrapper.optimizer.step = self.record_and_step
            self.model = get_ori_model(runner.model)

    def record_and_step(self, *args, **kwargs):
        self.grads = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return self.step(*args, **kwargs)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        record = dict(samples=self.samples, loss=outputs['loss'].detach(), grads=self.grads)
        torch.save(record, f'{runner.work_dir}/record_{dist.get_rank()}_{batch_idx}.pth')
"""

# Runs its command once per task, as on one node.
SRUN = """#!/usr/bin/env bash
echo "$@" > "$SRUN_LOG"
while [[ $1 == -* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=};; -p) shift;; esac
  shift
done
for ((i = 0; i < tasks; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$tasks SLURM_NODELIST='node[1]' "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = 'show hostnames node[1]' ] && echo 127.0.0.1
"""


def write_project(folder: Path, model: dict, with_label: bool = False) -> None:
    for i in range(2):
        write_images(folder / 'photos' / f'class{i}', 4, seed=i, suffix='.png')
    write_config(
        folder,
        custom_imports=dict(imports=['qbheat_mm', 'recorder'], allow_failed_imports=False),
        default_hooks=dict(recorder=dict(type='Recorder')),
        train_dataloader=image_loader('photos', with_label=with_label) | dict(num_workers=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        model=model,
    )
    (folder / 'recorder.py').write_text(RECORDER)


def run_in(folder: Path, *command: str | Path, **env: str) -> str:
    path = os.pathsep.join([str(folder / 'bin'), str(Path(sys.executable).parent), os.environ['PATH']])
    return run(*command, cwd=folder, PYTHONPATH=f'{folder}{os.pathsep}{ROOT}', PATH=path, **env)


def a_free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def records(folder: Path, processes: int) -> list[list[dict]]:
    """By iteration, then by process."""
    return [[torch.load(folder / f'record_{rank}_{i}.pth') for rank in range(processes)] for i in range(2)]


@pytest.fixture(scope='module')
def two_and_one(tmp_path_factory):
    """The records of two processes with batches of 2, and of one with batches of 4."""
    folder = tmp_path_factory.mktemp('ddp')
    model = qbheat_config()
    model['backbone']['norm_eval'] = True
    write_project(folder, model)
    half = ('--cfg-options', 'train_dataloader.batch_size=2')
    tools = ROOT / 'tools'
    run_in(folder, tools / 'dist_train.sh', 'config.py', '2', '--work-dir', 'two', *half, PORT=a_free_port())
    run_in(folder, sys.executable, tools / 'train.py', 'config.py', '--work-dir', 'one', PYTHONHASHSEED='0')
    return records(folder / 'two', 2), records(folder / 'one', 1)


def test_two_processes_train_as_one_with_the_same_global_batch(two_and_one):
    """With BatchNorm in eval mode; images, crops and quarters are the same without further ado."""
    for two, (one,) in zip(*two_and_one):
        assert sorted(sample for each in two for sample in each['samples']) == sorted(one['samples'])
        assert torch.stack([each['loss'] for each in two]).mean().item() == pytest.approx(one['loss'].item(), abs=1e-5)
        assert max(grad.abs().max() for grad in one['grads'].values()) > 1e-3
        assert two[0]['grads'].keys() == one['grads'].keys()
        for name, grad in one['grads'].items():
            for each in two:
                torch.testing.assert_close(each['grads'][name], grad, rtol=0, atol=1e-5, msg=name)


def test_each_process_draws_its_own_images_and_quarters(two_and_one):
    first, second = (
        [sample for iteration in two_and_one[0] for sample in iteration[rank]['samples']] for rank in (0, 1)
    )
    assert not {path for path, _ in first} & {path for path, _ in second}
    assert [origin for _, origin in first] != [origin for _, origin in second]
    assert len({origin for _, origin in first + second}) > 2


def test_slurm_starts_two_processes_and_sync_bn_becomes_bn(tmp_path):
    """Images and, in the neck, vectors are normalized."""
    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[128] * 3, std=[64] * 3),
        backbone=dict(type='MobileFormer', arch=TINY_ARCH),
        neck=[
            dict(type='GlobalAveragePooling'),
            dict(type='LinearNeck', in_channels=20, out_channels=8, gap_dim=0, norm_cfg=dict(type='SyncBN')),
        ],
        head=dict(type='LinearClsHead', num_classes=2, in_channels=8, loss=dict(type='CrossEntropyLoss')),
    )
    write_project(tmp_path, model, with_label=True)
    (tmp_path / 'bin').mkdir()
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)
    output = run_in(
        tmp_path,
        ROOT / 'tools' / 'slurm_train.sh',
        *('gpus', 'a-name', 'config.py', 'run', '--cfg-options', 'train_dataloader.batch_size=2'),
        GPUS='2',
        SRUN_ARGS='--exclusive --time=1',
        SRUN_LOG=str(tmp_path / 'srun.txt'),
        MASTER_PORT=a_free_port(),
    )
    asked = (tmp_path / 'srun.txt').read_text()
    for part in ('-p gpus', '--job-name=a-name', '--gres=gpu:2', '--ntasks=2', '--exclusive --time=1'):
        assert part in asked
    assert 'SyncBatchNorm needs GPUs; using BatchNorm' in output
    assert 'Effective batch: 2 process(es) x 2 images' in output
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    first, second = records(tmp_path / 'run', 2)[0]
    assert first['grads'].keys() == second['grads'].keys()
    assert all(torch.equal(first['grads'][name], second['grads'][name]) for name in first['grads'])
