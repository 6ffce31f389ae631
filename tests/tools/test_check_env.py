import sys

import pytest
from helpers.models import ROOT
from helpers.runs import run

from qbheat_mm import compat

NAMES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet')


@pytest.fixture
def tool(load_tool):
    return load_tool('misc/check_env.py')


def run_tool(**options) -> str:
    return run(sys.executable, ROOT / 'tools' / 'misc' / 'check_env.py', CUDA_VISIBLE_DEVICES='-1', **options)


@pytest.mark.parametrize(
    ('families', 'family', 'count'),
    [
        (dict.fromkeys(NAMES, 'OneDL'), 'OneDL', 0),
        (dict.fromkeys(NAMES, 'original'), 'original', 0),
        (dict(mmcv='original'), 'original', 0),
        (dict.fromkeys(NAMES, 'OneDL') | dict(mmcv='original'), 'OneDL and original, wrongly', 1),
        ({}, 'none', 0),
    ],
)
def test_both_families_at_once_are_told(tool, families, family, count):
    problems = []
    assert tool.find_family(families, problems) == family
    assert len(problems) == count
    assert all('mmcv is of the original one' in text and 'Remedy: a fresh environment' in text for text in problems)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ("__version__ = '2.1.0'\n\ndef parse(): ...", ('2.1.0', 'original')),
        ("from importlib.metadata import version\n__version__ = version('onedl-mmcv')", ('2.3.6', 'OneDL')),
        ("__version__: str = version('onedl-gone')", ('unknown', 'OneDL')),
    ],
)
def test_version_and_family_are_read_from_the_files(tool, tmp_path, monkeypatch, text, expected):
    (tmp_path / 'a_package').mkdir()
    (tmp_path / 'a_package' / '__init__.py').write_text('raise RuntimeError')
    (tmp_path / 'a_package' / 'version.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tool, '_distribution_version', {'onedl-mmcv': '2.3.6'}.get)
    assert tool.read_version('a_package') == expected


@pytest.mark.parametrize(
    ('distributions', 'files', 'message'),
    [
        ({'onedl-mmcv': '2.3.6'}, '2.3.6', None),
        ({}, '2.1.0', None),  # a checkout
        ({'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}, '2.3.6', 'mmcv and onedl-mmcv are both installed'),
        ({'onedl-mmcv': '2.3.6'}, '2.1.0', 'The files of mmcv are of version 2.1.0, but onedl-mmcv 2.3.6 is installed'),
    ],
)
def test_packages_that_overwrote_each_other_are_told(tool, monkeypatch, distributions, files, message):
    monkeypatch.setattr(tool, '_distribution_version', distributions.get)
    problems = []
    tool.check_distributions(dict(mmcv=files), problems)
    assert len(problems) == bool(message)
    assert not message or message in problems[0]


def test_this_environment_fits():
    output = run_tool()
    parts = (
        'family of the OpenMMLab packages: ',
        'ops of mmcv: ',
        'RoIAlign' if not compat.has_compiled_ops() else 'compiled',
        'patches in force: ',
        'gloo yes',
        'Everything fits',
    )
    assert all(part in output for part in parts), output


def test_an_environment_that_does_not_fit_exits_with_the_remedy(tool, tmp_path):
    """An mmcv of the other family lies before this one's."""
    other = {'OneDL': "__version__ = '2.1.0'", 'original': "__version__ = version('onedl-mmcv')"}[
        tool.read_version('mmcv')[1]
    ]
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('')
    (tmp_path / 'mmcv' / 'version.py').write_text(other)
    output = run_tool(PYTHONPATH=str(tmp_path), fails=True)
    assert 'PROBLEM: Packages of both families are mixed' in output
    assert 'pip install -r requirements/onedl.txt' in output
    assert output.startswith('Python ')  # without a warning or traceback
    assert output.endswith('see above.\n')
    assert 'Traceback' not in output
