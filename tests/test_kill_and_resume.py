import os
import sys

import pytest
from helpers.models import ROOT
from helpers.runs import run


@pytest.mark.slow
def test_runs_that_are_killed_end_as_the_run_that_was_not():
    """One SIGKILL for each kind of run; the tool itself compares."""
    script = ROOT / 'tests/helpers/kill_and_resume.py'
    output = run(sys.executable, script, '--kills', '6', PYTHONPATH=f'{ROOT}/tests{os.pathsep}{ROOT}')
    assert output.count('; kills 1') + output.count(', kills 1,') == 6
    assert 'All checks hold' in output
