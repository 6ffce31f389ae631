"""At every moment there is a complete checkpoint, and a run resumes from a complete one."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.runs import log_of, pretraining, same_bits
from mmengine.logging import MessageHub, MMLogger

from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.checkpoint.resume import own_checkpoints
from qbheat_mm.engine.hooks import AtomicCheckpointHook


def names(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob('*.pth*'))


@pytest.mark.parametrize(('spoilt', 'epoch'), [(['epoch_3.pth'], 2), (['epoch_3.pth', 'epoch_2.pth'], 1)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(images, tmp_path, spoilt, epoch):
    pretraining(tmp_path, images, train_cfg=dict(by_epoch=True, max_epochs=3)).train()
    (tmp_path / 'epoch_3.pth').rename(tmp_path / 'whole.pth')
    content = (tmp_path / 'whole.pth').read_bytes()
    for name in spoilt:
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    pretraining(tmp_path, images, train_cfg=dict(by_epoch=True, max_epochs=3), resume=True).train()
    log = log_of(tmp_path)
    for name in spoilt:
        assert f'{name}" is damaged' in log
    assert f'resumed epoch: {epoch}, iter: {4 * epoch}' in log
    assert same_bits(tmp_path / 'epoch_3.pth', tmp_path / 'whole.pth')


def test_where_nothing_is_whole_it_stops(images, tmp_path):
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    with pytest.raises(
        CheckpointError, match=r'no complete checkpoint to resume from.*epoch_1\.pth.*Start over without'
    ):
        pretraining(tmp_path, images, resume=True).train()


def test_a_damaged_checkpoint_that_is_asked_for_is_refused_and_a_whole_one_named(images, tmp_path):
    pretraining(tmp_path, images, train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    (tmp_path / 'broken.pth').write_bytes((tmp_path / 'epoch_1.pth').read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r'broken\.pth" is damaged.*Resume from ".*epoch_1\.pth"'):
        pretraining(tmp_path, images, resume=True, load_from=str(tmp_path / 'broken.pth')).train()


def test_a_torn_pointer_and_a_moved_folder_do_not_matter(images, tmp_path):
    pretraining(tmp_path / 'old', images, train_cfg=dict(by_epoch=True, max_epochs=2)).train()
    (tmp_path / 'old').rename(tmp_path / 'new')
    assert own_checkpoints(tmp_path / 'new')[0].name == 'epoch_2.pth'
    (tmp_path / 'new' / 'last_checkpoint').write_text('')
    assert own_checkpoints(tmp_path / 'new')[0].name == 'epoch_2.pth'
    (tmp_path / 'new' / 'last_checkpoint').write_text(str(tmp_path / 'new' / 'epoch_1.pth'))
    assert own_checkpoints(tmp_path / 'new')[0].name == 'epoch_1.pth'


def test_a_run_without_checkpoints_begins(images, tmp_path):
    pretraining(tmp_path, images, train_cfg=dict(by_epoch=True, max_epochs=1), resume=True).train()
    assert names(tmp_path) == ['epoch_1.pth']


class Disk:
    """Notes what is there whole whenever something is about to be written, and is full at the n-th write."""

    def __init__(self, folder: Path, monkeypatch, full_at: int | None = None) -> None:
        self.folder, self.full_at, self.seen = folder, full_at, []
        monkeypatch.setattr(os, 'fsync', self.fsync)

    def fsync(self, number: int) -> None:
        self.seen.append([path.name for path in sorted(self.folder.glob('*.pth'))])
        if len(self.seen) == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_old_checkpoint_goes_after_the_new_one_came(images, tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    pretraining(tmp_path, images, dict(max_keep_ckpts=1), train_cfg=dict(by_epoch=True, max_epochs=3)).train()
    before = disk.seen[::2]  # each checkpoint is followed by its pointer
    assert before == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert names(tmp_path) == ['epoch_3.pth']


def test_a_full_disk_stops_the_run_and_the_old_checkpoint_is_whole(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Disk(tmp_path, patch, full_at=3)
        with pytest.raises(OSError, match=r'epoch_2\.pth" cannot be written \(No space left.*--resume'):
            pretraining(tmp_path, images, dict(max_keep_ckpts=1)).train()
    assert names(tmp_path) == ['epoch_1.pth']
    pretraining(tmp_path, images, dict(max_keep_ckpts=1), resume=True).train()
    assert 'resumed epoch: 1, iter: 4' in log_of(tmp_path)
    assert names(tmp_path) == ['epoch_2.pth']


def test_a_run_killed_before_the_removal_removes_on_resume(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointHook, '_remove', lambda hook, path: exit(9) if 'epoch_1' in path else None)
        with pytest.raises(SystemExit):
            pretraining(tmp_path, images, dict(max_keep_ckpts=1)).train()
    for name in ('epoch_9.pth', 'last_checkpoint'):
        (tmp_path / f'{name}.0a1b2c3d.partial').write_bytes(b'of a killed run')
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_9.pth.0a1b2c3d.partial']
    pretraining(tmp_path, images, dict(max_keep_ckpts=1), resume=True).train()
    assert names(tmp_path) == ['epoch_2.pth']
    assert not list(tmp_path.glob('*.partial'))


def test_the_best_checkpoint_is_removed_after_the_new_one_is_written_and_stays_if_it_is_not(tmp_path, monkeypatch):
    """Called as the validation loop calls it, with a score that rises, on a disk that is full in the end."""
    disk = Disk(tmp_path, monkeypatch, full_at=3)
    runner = SimpleNamespace(
        _resume=False,
        work_dir=str(tmp_path),
        message_hub=MessageHub.get_instance('best checkpoints'),
        logger=MMLogger.get_current_instance(),
        iter=0,
        save_checkpoint=lambda out_dir, filename, **kwargs: hook.file_backend.put(b'weights', f'{out_dir}/{filename}'),
    )
    hook = AtomicCheckpointHook(save_best='acc', rule='greater')
    hook.before_train(runner)
    for runner.epoch in (1, 2):
        hook.after_val_epoch(runner, dict(acc=runner.epoch / 10))
    assert disk.seen == [[], ['best_acc_epoch_1.pth']]
    assert names(tmp_path) == ['best_acc_epoch_2.pth']
    runner.epoch = 3
    with pytest.raises(OSError, match=r'best_acc_epoch_3\.pth" cannot be written'):
        hook.after_val_epoch(runner, dict(acc=0.3))
    assert names(tmp_path) == ['best_acc_epoch_2.pth']


def test_another_store_is_left_to_mmengine():
    for kwargs in (dict(out_dir='s3://bucket'), dict(backend_args=dict(backend='local'))):
        hook = AtomicCheckpointHook(**kwargs)
        assert hook.backend_args == kwargs.get('backend_args')
