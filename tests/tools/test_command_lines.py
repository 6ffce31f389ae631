"""Every script parses its arguments before it imports PyTorch and OpenMMLab, and imports those quietly."""

import ast
import json
import sys

import pytest
from helpers.models import ROOT, load_script
from helpers.runs import run

from qbheat_mm.datasets.transforms.quarter_mask import PLACEMENTS
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ('tools', 'studies', 'demo')
    for path in (ROOT / folder).rglob('*.py')
    if "__name__ == '__main__'" in path.read_text()
)
CONFIG = str(ROOT / 'configs/_base_/default_runtime.py')
CODE = """
import json, runpy, sys
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path[0] = script.rpartition('/')[0]
try:
    runpy.run_path(script, run_name='__main__')
except SystemExit as error:
    heavy = {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'qbheat_mm', 'matplotlib', 'numpy'} & set(sys.modules)
    print(json.dumps([error.code, sorted(heavy)]))
"""


def parse(script: str, *arguments: str) -> tuple[str, int, list[str]]:
    """What the script prints, its exit status, and which heavy packages it imported."""
    *printed, last = run(sys.executable, '-c', CODE, str(ROOT / script), *arguments).splitlines()
    return '\n'.join(printed), *json.loads(last)


def test_scripts_are_found():
    assert len(SCRIPTS) >= 20
    assert {'tools/train.py', 'studies/run.py', 'demo/demo.py'} <= set(SCRIPTS)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_and_errors_come_before_the_imports(script):
    printed, status, heavy = parse(script, '--help')
    assert printed.startswith('usage: ')
    assert (status, heavy) == (0, [])
    printed, status, heavy = parse(script, '--no-such-option')
    assert 'error: ' in printed
    assert (status, heavy) == (2, [])


@pytest.mark.parametrize('script', [name for name in SCRIPTS if 'add_cfg_options' in (ROOT / name).read_text()])
def test_options_without_a_value_are_named(script):
    printed, status, heavy = parse(script, CONFIG, 'b', '--cfg-options', 'model.arch')
    assert 'error: argument --cfg-options: "model.arch" is not KEY=VALUE' in printed
    assert (status, heavy) == (2, [])


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('no/such.py', 'there is no config file "no/such.py"'),
        ('photos', '"photos" is no config file; they end in .py, .json, .yaml or .yml'),
    ],
)
@pytest.mark.parametrize('script', [name for name in SCRIPTS if 'config_file' in (ROOT / name).read_text()])
def test_a_config_that_does_not_exist_is_named_at_once(script, config, message):
    printed, status, heavy = parse(script, config, 'b', 'c')
    assert f'error: argument config: {message}' in printed
    assert (status, heavy) == (2, [])


@pytest.mark.parametrize('script', SCRIPTS)
def test_our_patches_come_before_the_packages_they_are_for(script):
    """Importing qbheat_mm holds back what these packages print when they are imported."""
    names = [
        name.partition('.')[0]
        for node in ast.parse((ROOT / script).read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    ]
    theirs = [names.index(name) for name in ('mmcv', 'mmpretrain', 'mmdet') if name in names]
    assert not theirs or names.index('qbheat_mm') < min(theirs)


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_the_home_folder_is_found_behind_an_equals_sign(tool, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', [tool, CONFIG, *['x.pth'] * (tool == 'test.py'), '--work-dir=~/runs'])
    assert load_script(f'tools/{tool}').parse_args().work_dir == f'{tmp_path}/runs'


def test_choices_are_those_of_the_package():
    assert sorted(ARCH_SETTINGS) == sorted(load_script('tools/benchmarks/_options.py').ARCHITECTURES)
    assert load_script('tools/analysis_tools/reconstruct.py').PLACEMENTS == PLACEMENTS
