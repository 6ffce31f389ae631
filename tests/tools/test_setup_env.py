"""The set-up leaves no half-made environment that a later call would trust."""

import os
import subprocess
import sys

import pytest
from helpers.models import ROOT


def set_up(venv, requirements, **env):
    return subprocess.run(
        ['bash', str(ROOT / 'tools/misc/setup_env.sh'), str(venv), str(requirements)],
        cwd=ROOT,
        env=dict(os.environ, PYTHON=sys.executable) | env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def requirements(tmp_path):
    path = tmp_path / 'requirements.txt'
    path.write_text('a-package-that-is-not-there\n')
    return path


def test_without_a_network_it_says_so_and_is_not_trusted_later(tmp_path, requirements):
    for _ in range(2):  # the second call must not take the first one's remains for an environment
        result = set_up(tmp_path / 'venv', requirements, PIP_NO_INDEX='1', PIP_FIND_LINKS='')
        assert result.returncode != 0
        assert 'set-up failed: pip could not install the packages' in result.stderr
        assert 'incomplete and will not be used' in result.stderr
        assert not (tmp_path / 'venv' / '.complete').exists()


def test_python_that_is_too_old_or_missing_is_named(tmp_path, requirements):
    result = set_up(tmp_path / 'venv', requirements, PYTHON='/no/python')
    assert result.returncode != 0
    assert '"/no/python" is not a Python >= 3.10' in result.stderr
    assert not (tmp_path / 'venv').exists()
