import errno
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qbheat_mm.checkpoint.atomic import AtomicBackend, atomic_dir, atomic_write, damage


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.arange(10000.0))), tmp_path / 'epoch_1.pth')
    return tmp_path / 'epoch_1.pth'


def test_a_whole_checkpoint_is_whole(checkpoint):
    assert damage(checkpoint) is None


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda content: b'', '0 bytes, no complete archive'),
        (lambda content: content[: len(content) // 2], 'no complete archive'),
        (lambda content: content[:-1], 'no complete archive'),
        (lambda content: bytes(len(content)), 'no complete archive'),
        (lambda content: content[:20000] + bytes(100) + content[20100:], r'checksum of its entry .*data/0 is wrong'),
        (lambda content: b'<html>not found</html>', 'no complete archive'),
    ],
    ids=['empty', 'half', 'one byte short', 'zeros', 'a hole', 'another file'],
)
def test_a_damaged_checkpoint_is_told(checkpoint, spoil, reason):
    checkpoint.write_bytes(spoil(checkpoint.read_bytes()))
    assert re.search(reason, damage(checkpoint))


def test_nothing_is_unpickled_to_tell(tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    torch.save(Code(), tmp_path / 'hostile.pth')
    assert damage(tmp_path / 'hostile.pth') is None
    assert not (tmp_path / 'ran').exists()


def test_the_old_content_stays_until_the_new_is_complete(tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')
    seen = []
    monkeypatch.setattr(os, 'fsync', lambda number: seen.append((path.read_bytes(), os.fstat(number).st_size)))
    atomic_write(path, b'new, longer')
    assert seen == [(b'old', 11)]
    assert path.read_bytes() == b'new, longer'
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip('mounting a small disk needs root')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def check_a_full_disk(folder: Path) -> None:
    backend = AtomicBackend()
    backend.put(b'old', folder / 'epoch_1.pth')
    with pytest.raises(
        OSError, match=r'epoch_1\.pth" cannot be written \(No space left on device\).*are unchanged.*--resume'
    ) as info:
        backend.put(bytes(2**21), folder / 'epoch_1.pth')
    assert info.value.errno == errno.ENOSPC
    assert [path.name for path in folder.iterdir()] == ['epoch_1.pth']
    assert (folder / 'epoch_1.pth').read_bytes() == b'old'


def test_a_full_disk_leaves_the_old_file(small_disk):
    check_a_full_disk(small_disk)


def test_a_disk_that_says_it_is_full_leaves_the_old_file(tmp_path, monkeypatch):
    def refuse(number):
        if os.fstat(number).st_size > 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', refuse)
    check_a_full_disk(tmp_path)


def fail_midway(target: Path, **kwargs) -> None:
    with atomic_dir(target, **kwargs) as folder:
        (folder / 'a').write_text('half')
        raise RuntimeError('midway')


def test_a_folder_appears_filled_or_not_at_all(tmp_path):
    target, bystander = tmp_path / 'new', tmp_path / 'new.partial'
    bystander.mkdir()
    with pytest.raises(RuntimeError, match='midway'):
        fail_midway(target)
    assert list(tmp_path.iterdir()) == [bystander]
    with atomic_dir(target) as folder:
        (folder / 'a').write_text('whole')
        assert not target.exists()
    assert (target / 'a').read_text() == 'whole'
    with pytest.raises(FileExistsError, match='exists already'), atomic_dir(target):
        pass
    with pytest.raises(RuntimeError, match='midway'):
        fail_midway(target, replace=True)
    assert (target / 'a').read_text() == 'whole'
    with atomic_dir(target, replace=True) as folder:
        (folder / 'b').touch()
    assert [path.name for path in target.iterdir()] == ['b']
    assert sorted(tmp_path.iterdir()) == [target, bystander]


def test_files_have_the_permissions_of_other_files(tmp_path):
    atomic_write(tmp_path / 'atomic', b'')
    (tmp_path / 'other').touch()
    assert (tmp_path / 'atomic').stat().st_mode == (tmp_path / 'other').stat().st_mode


def test_a_folder_left_by_a_killed_process_is_named_and_stays(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('qbheat_mm.checkpoint.atomic.print_log', lambda text, **kwargs: said.append(text))
    path = tmp_path / 'out[1]'
    code = 'import os; from qbheat_mm.checkpoint import atomic_dir\nwith atomic_dir({!r}): os.kill(os.getpid(), 9)'
    subprocess.run([sys.executable, '-c', code.format(str(path))])
    (killed,) = tmp_path.iterdir()
    with atomic_dir(path):
        pass
    assert set(tmp_path.iterdir()) == {path, killed}
    assert str(killed) in said[0]


def test_a_taken_temporary_name_is_neither_overwritten_nor_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, 'token_hex', lambda size: '0a1b2c3d')
    taken = tmp_path / 'new.0a1b2c3d.partial'
    taken.write_bytes(b'mine')
    with pytest.raises(OSError, match='File exists'):
        atomic_write(tmp_path / 'new', b'')
    with pytest.raises(OSError, match='File exists'), atomic_dir(tmp_path / 'new'):
        pass
    assert taken.read_bytes() == b'mine'
    taken.unlink()
    taken.mkdir()
    with pytest.raises(OSError, match='File exists'), atomic_dir(tmp_path / 'new'):
        pass
    assert list(tmp_path.iterdir()) == [taken]


def test_a_new_file_replaces_nothing(tmp_path):
    atomic_write(tmp_path / 'new', b'one', replace=False)
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    for name in ('new', 'link'):
        with pytest.raises(FileExistsError, match=f'{name}" exists already'):
            atomic_write(tmp_path / name, b'two', replace=False)
    assert (tmp_path / 'new').read_bytes() == b'one'
    assert (tmp_path / 'link').is_symlink()


@pytest.mark.parametrize('letter', ['n', '写'])
def test_names_as_long_as_the_file_system_takes(tmp_path, letter):
    name = (letter * 255).encode()[:255].decode(errors='ignore')
    atomic_write(tmp_path / name, b'content')
    assert (tmp_path / name).read_bytes() == b'content'
    (tmp_path / name).unlink()
    with atomic_dir(tmp_path / name) as partial:
        (partial / 'file').touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')] == [name, f'{name}/file']
