import os

import pytest

from qbheat_mm.files import read_file


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
