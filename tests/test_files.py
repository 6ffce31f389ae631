import os

import pytest

from qbheat_mm.files import list_files, list_folders, read_file


def test_only_regular_files_of_limited_size_are_read(tmp_path):
    (tmp_path / 'file').write_bytes(b'123')
    assert read_file(tmp_path / 'file', 3) == b'123'
    with pytest.raises(OSError, match=r'3 bytes, at most 2.*file'):
        read_file(tmp_path / 'file', 2)
    os.mkfifo(tmp_path / 'fifo')
    with pytest.raises(OSError, match=r'Not a regular file.*fifo'):
        read_file(tmp_path / 'fifo')
    with pytest.raises(OSError, match='Not a regular file'):
        read_file(tmp_path)
    with pytest.raises(OSError, match='Not a regular file'):
        read_file('/dev/zero')


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    texts = []
    monkeypatch.setattr('qbheat_mm.files.print_log', lambda text, **kwargs: texts.append(text))
    return texts


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_links_are_followed_and_each_folder_is_listed_once(tmp_path, said):
    root = tmp_path / 'root'
    touch(root, 'b/1.jpg', 'c/2.JPG', '3.png', 'notes.txt')
    touch(tmp_path, 'elsewhere/deep/4.jpg', 'elsewhere/5.jpg')
    (root / 'a').symlink_to(tmp_path / 'elsewhere')
    (root / 'file.jpg').symlink_to(tmp_path / 'elsewhere' / '5.jpg')
    assert list_files(root, ('.jpg', '.png')) == ['3.png', 'a/5.jpg', 'a/deep/4.jpg', 'b/1.jpg', 'c/2.JPG', 'file.jpg']
    assert list_folders(root) == ['a', 'b', 'c']
    assert said == []
    (root / '0').symlink_to(root / 'b')  # sorted before the folder itself, which counts
    assert 'b/1.jpg' in list_files(root, ('.jpg',))
    assert 'skipped 1 links to a folder that is listed anyway, or that contains them (0/)' in said[0]


def test_circles_end(tmp_path, said):
    root = tmp_path / 'root'
    touch(root, 'a/1.jpg', 'b/2.jpg')
    touch(tmp_path, 'other.jpg')
    for name, target in {
        'up': '..',
        'self': 'self',
        'a/top': '..',
        'a/b': '../b',
        'b/a': '../a',
        'x.jpg': 'x.jpg',
    }.items():
        (root / name).symlink_to(target)
    assert list_files(root, ('.jpg',)) == ['a/1.jpg', 'b/2.jpg']
    assert list_folders(root) == ['a', 'b']
    assert '4 links to a folder' in said[0]
    assert '1 broken links, FIFOs or devices (x.jpg)' in said[0]


def test_hidden_and_special_files_are_skipped_and_named(tmp_path, said):
    touch(
        tmp_path,
        '.thumbnails/1.jpg',
        '__MACOSX/1.jpg',
        'a/@eaDir/1.jpg',
        'a/._1.jpg',
        'a/1.jpg',
        '.DS_Store',
        'a\nb/.x/1.jpg',
    )
    os.mkfifo(tmp_path / 'a' / 'fifo.jpg')
    (tmp_path / 'lost.jpg').symlink_to('nowhere')
    assert list_files(tmp_path, ('.jpg',)) == ['a/1.jpg']
    assert list_folders(tmp_path) == ['a', 'a\nb']
    assert '4 hidden folders (.thumbnails/, __MACOSX/,' in said[0]
    assert '1 hidden files (a/._1.jpg)' in said[0]
    assert '2 broken links, FIFOs or devices' in said[0]
    assert '\n' not in said[0]
    with pytest.raises(FileNotFoundError):
        list_files(tmp_path / 'nowhere', ('.jpg',))


def test_a_long_listing_reports_how_far_it_is(tmp_path, said, monkeypatch):
    touch(tmp_path, *(f'{folder}/{i}.jpg' for folder in 'ab' for i in range(3)))
    names = list_files(tmp_path, ('.jpg',))
    assert said == []
    monkeypatch.setattr('qbheat_mm.files.PATIENCE', 0)
    assert list_files(tmp_path, ('.jpg',)) == names
    assert [text.removeprefix(f'"{tmp_path}": ').split()[0] for text in said] == [str(i) for i in range(1, 9)]


def test_files_are_not_asked_for_one_by_one(tmp_path, monkeypatch):
    """Each question is a round trip on a network disk; the listing of a folder tells files from folders."""
    touch(tmp_path, *(f'a/{i}.jpg' for i in range(50)))
    (tmp_path / 'a' / 'link.jpg').symlink_to('0.jpg')
    asked = []
    for name in ('stat', 'lstat'):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *args, _real=real, **kw: asked.append(path) or _real(path, *args, **kw)
        )
    assert len(list_files(tmp_path, ('.jpg',))) == 51
    assert {os.path.basename(path) for path in map(os.fspath, asked) if path.endswith('.jpg')} == {'link.jpg'}
