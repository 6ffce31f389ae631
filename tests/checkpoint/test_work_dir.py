"""A work dir belongs to one training, which neither another one nor damage to its files ends."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers.models import ROOT
from helpers.runs import At, pretraining, run, run_config
from mmengine.runner import Runner

from qbheat_mm.checkpoint.resume import choose_checkpoint, own_checkpoints
from qbheat_mm.checkpoint.work_dir import WorkDirError, claim, release
from qbheat_mm.engine.launch import train

ONE_EPOCH = dict(by_epoch=True, max_epochs=1)
HOLD = """
import os, sys, time
from qbheat_mm.checkpoint.work_dir import claim
claim(sys.argv[1], resume=False)
print('held', flush=True)
os.fork()
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the work dir, and a worker of it that outlives it."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)], env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while 'held' not in (line := process.stdout.readline()):
        assert line, 'it ended'
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_two_trainings_cannot_have_one_work_dir_until_the_first_is_gone(images, tmp_path, holder):
    with pytest.raises(WorkDirError, match=rf'is in use: process {holder.pid} on .* trains in it.*--work-dir'):
        pretraining(tmp_path, images, train_cfg=ONE_EPOCH).train()
    with pytest.raises(WorkDirError):
        claim(tmp_path, resume=True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    claim(tmp_path, resume=False)  # although what it forked is alive
    release(tmp_path)


def test_a_training_does_not_start_anew_over_another_s_checkpoints(images, tmp_path):
    pretraining(tmp_path, images, train_cfg=ONE_EPOCH).train()
    content = (tmp_path / 'epoch_1.pth').read_bytes()
    with pytest.raises(
        WorkDirError, match=r'holds checkpoints of another training \(epoch_1\.pth\).*--resume.*--work-dir'
    ):
        pretraining(tmp_path, images, train_cfg=ONE_EPOCH).train()
    assert (tmp_path / 'epoch_1.pth').read_bytes() == content
    pretraining(tmp_path, images, resume=True).train()
    assert (tmp_path / 'epoch_2.pth').is_file()


def test_a_work_dir_that_is_a_file_or_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    for name in ('file', 'file/below'):
        with pytest.raises(WorkDirError, match=f'"{tmp_path}/{name}" .*name another folder with --work-dir'):
            claim(tmp_path / name, resume=False)
    with pytest.raises(WorkDirError, match='cannot be written to'):
        claim('/proc/none', resume=False)


def test_the_tool_refuses_before_it_writes(images, tmp_path):
    (tmp_path / 'file').write_text('mine')
    config = ROOT / 'configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py'
    tool = ROOT / 'tools/train.py'
    text = run(sys.executable, tool, config, '--work-dir', tmp_path / 'file', fails=True, DATA_ROOT=str(images))
    assert f'The work dir "{tmp_path}/file" is a file' in text.splitlines()[-1]
    (tmp_path / 'epoch_1.pth').write_bytes(b'x')
    text = run(sys.executable, tool, config, '--work-dir', tmp_path, fails=True, DATA_ROOT=str(images))
    assert 'holds checkpoints of another training (epoch_1.pth)' in text.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.lock', 'epoch_1.pth', 'file']


def test_a_work_dir_that_is_removed_during_the_training_is_named(images, tmp_path):
    runner = Runner.from_cfg(run_config(tmp_path / 'run', images, train_cfg=dict(by_epoch=True, max_epochs=3)))
    runner.register_hook(At(2, lambda: shutil.rmtree(tmp_path / 'run')))
    runner.register_hook(At(3, lambda: (tmp_path / 'run' / 'x' / 'y').write_text('')))
    with pytest.raises(WorkDirError, match='was removed during the training'):
        train(runner)


def save(path, epoch: int, iteration: int, **extra) -> None:
    torch.save(dict(meta=dict(epoch=epoch, iter=iteration), state_dict=dict(), **extra), path)


def test_the_newest_checkpoint_is_that_of_the_highest_epoch_and_iteration(tmp_path):
    made = {'interrupted.pth': (2, 11), 'epoch_10.pth': (10, 40), 'epoch_9.pth': (9, 36), 'iter_38.pth': (9, 38)}
    for number, (name, progress) in enumerate(made.items()):
        save(tmp_path / name, *progress)
        os.utime(tmp_path / name, (1e9 - number, 1e9 - number))  # as a copy in another order
    order = ['epoch_10.pth', 'iter_38.pth', 'epoch_9.pth', 'interrupted.pth']
    assert [path.name for path in own_checkpoints(tmp_path)] == order
    (tmp_path / 'epoch_10.pth').write_bytes(b'damaged')
    assert [path.name for path in own_checkpoints(tmp_path)] == order
    assert choose_checkpoint(None, True, tmp_path).endswith('iter_38.pth')


@pytest.mark.parametrize(
    'pointer',
    [b'', b'\n', b'\xff\xfe\x00\x01' * 9, b'/gone/epoch_7.pth', b'a' * 5000, b'a\0b', b'..', b'last_checkpoint/x'],
)
def test_a_damaged_pointer_does_not_matter(tmp_path, pointer):
    (tmp_path / 'last_checkpoint').write_bytes(pointer)
    assert choose_checkpoint(None, True, tmp_path) is None
    save(tmp_path / 'epoch_1.pth', 1, 4)
    save(tmp_path / 'epoch_2.pth', 2, 8)
    assert choose_checkpoint(None, True, tmp_path) == str(tmp_path / 'epoch_2.pth')


def test_a_pointer_that_is_a_folder_does_not_matter(tmp_path):
    (tmp_path / 'last_checkpoint').mkdir()
    save(tmp_path / 'epoch_2.pth', 2, 8)
    assert choose_checkpoint(None, True, tmp_path) == str(tmp_path / 'epoch_2.pth')
