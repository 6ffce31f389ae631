"""The set-up leaves no half-made environment that a later call would trust."""

import sys

import pytest
from helpers.models import ROOT
from helpers.runs import run


def failed_set_up(venv, requirements, **env) -> str:
    env = dict(PYTHON=sys.executable) | env
    return run('bash', ROOT / 'tools/misc/setup_env.sh', venv, requirements, cwd=ROOT, fails=True, **env)


@pytest.fixture
def requirements(tmp_path):
    path = tmp_path / 'requirements.txt'
    path.write_text('a-package-that-is-not-there\n')
    return path


def test_without_a_network_it_says_so_and_is_not_trusted_later(tmp_path, requirements):
    for _ in range(2):  # the second call must not take the first one's remains for an environment
        output = failed_set_up(tmp_path / 'venv', requirements, PIP_NO_INDEX='1', PIP_FIND_LINKS='')
        assert 'set-up failed: pip could not install the packages' in output
        assert 'incomplete and will not be used' in output
        assert not (tmp_path / 'venv' / '.complete').exists()


def test_python_that_is_too_old_or_missing_is_named(tmp_path, requirements):
    output = failed_set_up(tmp_path / 'venv', requirements, PYTHON='/no/python')
    assert '"/no/python" is not a Python >= 3.10' in output
    assert not (tmp_path / 'venv').exists()
