"""The wheel brings what a checkout has, and what `mim` looks for."""

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
from mmengine.config import Config
import qbheat_mm

mim = Path(qbheat_mm.__file__).parent / '.mim'
assert mim.is_relative_to(sys.prefix), mim
for path in set(mim.glob('configs/**/*.py')) - set(mim.glob('configs/_base_/**/*.py')):
    Config.fromfile(path)
try:
    from modelindex.load_model_index import load
except ImportError:
    print('without modelindex')
else:
    index = load(str(mim / 'model-index.yml'))
    index.build_models_with_collections()
    assert all((mim / model.config).is_file() for model in index.models)
print('fine')
"""


def run(*command, **kwargs) -> str:
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def relative(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder) for path in folder.rglob('*') if path.is_file() and '__pycache__' not in path.parts
    }


@pytest.mark.slow
def test_it_installs_into_a_clean_environment_with_configs_tools_and_metafiles(tmp_path):
    source = tmp_path / 'source'
    for name in ('qbheat_mm', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    options = ['--disable-pip-version-check', '-q', '--no-deps', '--no-index']
    wheels = [*(sys.executable, '-m', 'pip', 'wheel'), *options, '--no-build-isolation', '-w', tmp_path]
    run(*wheels, source)
    (wheel,) = tmp_path.glob('qbheat_mm-*.whl')

    # a fresh environment that borrows PyTorch and OpenMMLab's packages from this one, but no qbheat_mm
    run(sys.executable, '-m', 'venv', tmp_path / 'venv')
    python = tmp_path / 'venv' / 'bin' / 'python'
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    (site / 'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n')
    run(python, '-m', 'pip', 'install', *options, '--ignore-installed', wheel)

    mim = site / 'qbheat_mm' / '.mim'
    for name in ('configs', 'tools'):
        assert relative(mim / name) == relative(source / name)
    clean = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    assert run(python, '-c', CHECK, cwd=tmp_path, env=clean).strip().endswith('fine')
    assert '--resume' in run(python, mim / 'tools' / 'train.py', '--help', cwd=tmp_path, env=clean)
