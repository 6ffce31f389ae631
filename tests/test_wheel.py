"""The wheel contains what a checkout has, and what `mim` and mmpretrain look for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.models import ROOT

CHECK = """
import sys
from pathlib import Path
import mmpretrain
from mmengine.config import Config
from modelindex.load_model_index import load
import qbheat_mm

mim = Path(qbheat_mm.__file__).parent / '.mim'
assert mim.is_relative_to(sys.prefix), mim
for path in mim.glob('configs/[!_]*/*.py'):
    Config.fromfile(path)
index = load(str(mim / 'model-index.yml'))
index.build_models_with_collections()
assert all((mim / model.config).is_file() for model in index.models)
weights = [model for model in index.models if model.weights]
assert weights
assert {model.name for model in weights} <= set(mmpretrain.list_models('*qbheat*'))
for model in weights:
    assert Path(mmpretrain.get_model(model.name, pretrained=True)._config.filename).is_relative_to(mim)
print('fine')
"""


def run(*command, **kwargs) -> str:
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob('*') if path.is_file() and path.suffix != '.pyc'}


@pytest.mark.slow
def test_it_installs_into_a_clean_environment_with_configs_tools_weights_and_metafiles(tmp_path):
    source, python = tmp_path / 'source', tmp_path / 'venv' / 'bin' / 'python'
    left_out = ('.*', '__pycache__', 'work_dirs', 'data', 'results', 'tests')
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    options = ['--disable-pip-version-check', '-q', '--no-deps', '--no-index']
    run(sys.executable, '-m', 'pip', 'wheel', *options, '--no-build-isolation', '-w', tmp_path, source)

    # A fresh environment that borrows PyTorch and OpenMMLab's packages from this one, but no qbheat_mm.
    run(sys.executable, '-m', 'venv', tmp_path / 'venv')
    (site,) = (tmp_path / 'venv' / 'lib').glob('python*/site-packages')
    (site / 'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n')
    run(python, '-m', 'pip', 'install', *options, '--ignore-installed', *tmp_path.glob('qbheat_mm-*.whl'))

    mim = site / 'qbheat_mm' / '.mim'
    assert all(files(mim / name) == files(source / name) for name in ('configs', 'tools', 'weights'))
    clean = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    assert run(python, '-c', CHECK, cwd=tmp_path, env=clean).strip().endswith('fine')
    assert '--resume' in run(python, mim / 'tools' / 'train.py', '--help', cwd=tmp_path, env=clean)
