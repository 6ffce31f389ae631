"""tools/train.py as people run it: from a shell, interrupted, on a machine without a GPU."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.models import ROOT, qbheat_config, write_images
from helpers.runs import image_loader, run, write_config


@pytest.fixture
def project(tmp_path):
    """A user's own config in a folder of its own, and images."""
    write_images(tmp_path / 'photos', 8)
    write_config(
        tmp_path,
        model=qbheat_config(),
        train_dataloader=image_loader('{{$DATA_ROOT:nowhere}}') | dict(num_workers=1),
        optim_wrapper=dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
        default_hooks=dict(logger=dict(interval=1)),
    )
    return tmp_path


COMMAND = (sys.executable, ROOT / 'tools/train.py', 'config.py', '--work-dir', 'run')


def train(project, *options: str, fails: bool = False, **env: str) -> str:
    return run(*COMMAND, *options, cwd=project, fails=fails, DATA_ROOT='photos', **env)


def start(project, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *options],
        cwd=project,
        env=dict(os.environ, PYTHONPATH=str(ROOT), DATA_ROOT='photos', OMP_NUM_THREADS='1'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_for_two_epochs(project) -> subprocess.Popen:
    """A run that is far from its end."""
    process = start(project, '--cfg-options', 'train_cfg.max_epochs=10000')
    deadline = time.monotonic() + 300
    while not (project / 'run' / 'epoch_2.pth').exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_an_amp_config_runs_without_a_gpu_and_says_so(project):
    output = train(project, '--cfg-options', 'train_cfg.max_epochs=1', CUDA_VISIBLE_DEVICES='0')
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    assert output.count('mixed precision needs a GPU; training in float32') == 1
    assert output.count('CUDA_VISIBLE_DEVICES=0 names a GPU, but none can be used here; running on the CPU') == 1


def test_a_killed_run_resumes_from_its_last_checkpoint(project):
    process = train_for_two_epochs(project)
    process.kill()
    process.communicate(timeout=300)
    last = int((project / 'run' / 'last_checkpoint').read_text().strip().rpartition('epoch_')[2].removesuffix('.pth'))

    output = train(project, '--resume', '--cfg-options', f'train_cfg.max_epochs={last + 1}')
    assert f'resumed epoch: {last}' in output
    assert f'Epoch(train) [{last}]' not in output
    assert f'[{last + 1}][2/2]' in output


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_keeps_the_iteration_and_ends(project, number):
    """The workers get it too, as on a cluster and from a terminal; nothing hangs at the end."""
    process = train_for_two_epochs(project)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert f'{number.name}: stopped at iteration' in output.splitlines()[-1]
    assert (project / 'run' / 'last_checkpoint').read_text().endswith('interrupted.pth')


def test_a_missing_folder_ends_with_its_name(project):
    output = train(project, '--cfg-options', 'train_dataloader.dataset.data_root=/no/such/folder', fails=True)
    assert 'There is no folder "/no/such/folder" to take images from' in output.strip().splitlines()[-1]


def test_fewer_images_than_a_batch_are_refused_with_both_numbers(project):
    options = ('batch_size=16', 'drop_last=True', 'num_workers=0', 'persistent_workers=True')  # the last goes along
    output = train(project, '--cfg-options', *(f'train_dataloader.{option}' for option in options), fails=True)
    assert 'have 8 samples, which do not fill a batch of 16' in output
    assert 'train_dataloader.batch_size=8 or less' in output


@pytest.mark.parametrize('epochs', [0, -1])
def test_a_run_of_no_epoch_is_refused(project, epochs):
    output = train(project, '--cfg-options', f'train_cfg.max_epochs={epochs}', fails=True)
    assert f'train_cfg.max_epochs is {epochs}: nothing would be trained' in output
