"""The records of a study, one JSON line per stage in ``runs.jsonl``.

Several processes may append at the same time. Files of several machines are merged with ``cat``: of two records of the
same stage the later one counts.
"""

from __future__ import annotations

import fcntl
import json
import warnings
from pathlib import Path

from qbheat_mm.checkpoint import atomic_write


def read_records(path: Path) -> dict[str, dict]:
    """Read all records by stage name; a warning names each line that is not one, e.g. of an interrupted copy."""
    records = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            record = json.loads(line)
            records[record['stage']] = record
        except (ValueError, TypeError, KeyError):
            warnings.warn(f'{path}:{number} is not a record and is ignored.', stacklevel=2)
    return dict(sorted(records.items()))


def append_record(path: Path, record: dict) -> None:
    """Append a record; concurrent calls wait for each other, and a killed one leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix('.lock').open('w') as lock:  # a file of its own, since the other one is replaced
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = path.read_bytes().splitlines() if path.exists() else []
        atomic_write(path, b'\n'.join([*lines, json.dumps(record).encode(), b'']))
