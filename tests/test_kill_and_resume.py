import os
import subprocess
import sys

import pytest
from helpers.models import ROOT


@pytest.mark.slow
def test_runs_that_are_killed_end_as_the_run_that_was_not():
    """One SIGKILL for each kind of run; the tool itself compares."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/helpers/kill_and_resume.py'), '--kills', '3'],
        env=dict(os.environ, PYTHONPATH=f'{ROOT}/tests{os.pathsep}{ROOT}', OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count('kills 1') == 3
    assert 'All checks hold' in done.stdout
