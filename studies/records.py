"""The records of a study, one JSON line per stage in ``runs.jsonl``.

Several processes may append at the same time. Files of several machines are merged with ``cat``: of two records of the
same stage the later one counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from pathlib import Path


def read_records(path: Path) -> dict[str, dict]:
    """Read all records by stage name; lines that are not records, as a killed writer leaves them, cause a warning."""
    records = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            record = json.loads(line)
            records[record['stage']] = record
        except (ValueError, TypeError, KeyError):
            warnings.warn(f'{path}:{number} is not a record and is ignored.', stacklevel=2)
    return dict(sorted(records.items()))


def append_record(path: Path, record: dict) -> None:
    """Append a record under a lock, on a line of its own even if the last line is incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        newline = b'' if file.read(1) in (b'', b'\n') else b'\n'
        file.write(newline + json.dumps(record).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())
