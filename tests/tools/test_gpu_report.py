import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.models import ROOT
from helpers.runs import run


@pytest.fixture
def tool(load_tool):
    return load_tool('benchmarks/gpu_report.py')


def test_every_part_runs_on_a_cpu_and_none_runs_twice(tool, tmp_path, capsys, monkeypatch):
    arguments = ['--quick', '--out', str(tmp_path), '--minutes', '60']  # no assertion on a busy machine
    assert tool.main(arguments) == 0, [path.read_text()[-2000:] for path in tmp_path.glob('*.log')]
    text = capsys.readouterr().out
    for sign in ('| 4 | 0 | 0 |', '| qbheat |', '| shared_basis |', 'frozen', '| 1 workers |'):
        assert sign in text, sign
    names = set(tool.parts(tool.parse_args(arguments))) | {'environment'}
    assert {path.stem for path in tmp_path.glob('*.json')} == names
    assert not list(tmp_path.glob('*.partial'))
    monkeypatch.setattr(tool, 'run', lambda *args: pytest.fail('a second run of a part'))
    assert tool.main(arguments) == 0


PART = "import sys, time; time.sleep({seconds}); open(sys.argv[1], 'w').write('[1]'); sys.exit({code})"


@pytest.fixture
def stub(tool, monkeypatch):
    """One part, of which the time it takes and its exit code are known."""

    def make(seconds: float, code: int = 0) -> None:
        part = tool.Part(('-c', PART.format(seconds=seconds, code=code), '{out}'), 20)
        monkeypatch.setattr(tool, 'parts', lambda args: dict(stub=part))

    return make


@pytest.mark.parametrize(('seconds', 'code', 'outcome'), [(600, 0, 'cut off after'), (0, 3, 'failed')])
def test_what_was_cut_off_or_failed_runs_again(tool, stub, tmp_path, capsys, seconds, code, outcome):
    stub(seconds, code)
    assert tool.main(['--quick', '--out', str(tmp_path), '--minutes', '0.1']) == 1
    assert f'stub: {outcome}' in capsys.readouterr().out
    assert not (tmp_path / 'stub.json').exists()
    stub(0)
    assert tool.main(['--quick', '--out', str(tmp_path)]) == 0
    assert json.loads((tmp_path / 'stub.json').read_text()) == [1]


def test_nothing_starts_when_time_is_up(tool, stub, tmp_path, capsys):
    stub(0)
    assert tool.main(['--quick', '--out', str(tmp_path), '--minutes', '0']) == 1
    assert 'no time left' in capsys.readouterr().out


def test_failed_tests_are_named(tool, tmp_path):
    (tmp_path / 'a.xml').write_text(
        '<testsuites><testsuite tests="3" skipped="1" failures="1" errors="0" time="2.5"><testcase name="good"/>'
        '<testcase name="bad"><failure message="assert 1 == 2"/></testcase></testsuite></testsuites>'
    )
    found = tool.read_tests(tmp_path / 'a.xml')
    assert found['failed'] == dict(bad='assert 1 == 2')
    assert (found['tests'], found['skipped'], found['failures']) == (3, 1, 1)


def test_the_readme_takes_tables_any_number_of_times(tool):
    readme = (ROOT / 'tools/benchmarks/README.md').read_text()
    for i in range(2):
        readme = tool.insert(readme, f'table {i}')
    assert readme.count('table 1') == readme.count(tool.BEGIN) == readme.count(tool.END) == 1
    assert 'table 0' not in readme
    with pytest.raises(ValueError, match='lacks the lines'):
        tool.insert('# Benchmarks', 'table')


def test_targets_are_met_from_the_right_side(tool):
    assert [tool.verdict(1.2, -1.3), tool.verdict(1.4, -1.3)] == ['met', 'not met']
    assert [tool.verdict(3.4, 3.3), tool.verdict(3.2, 3.3)] == ['met', 'not met']


def test_without_a_gpu_it_says_so(tool, capsys, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit):
        tool.main([])
    assert '--quick tries every part on a CPU' in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_network_wheels_suffice(tmp_path):
    """The module of the wheel is there while the report runs, and nowhere afterwards."""
    wheel, info = tmp_path / 'wheels' / 'small-1.0-py3-none-any.whl', 'small-1.0.dist-info'
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('sitecustomize.py', "print('from the wheel')")
        archive.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: small\nVersion: 1.0\n')
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    project = tmp_path / 'project'
    project.mkdir()
    for name in ('configs', 'qbheat_mm', 'tests', 'pyproject.toml'):
        (project / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / 'tools', project / 'tools')  # the script writes below its own project
    script, out = project / 'tools/benchmarks/offline_gpu_report.sh', tmp_path / 'out'
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    text = run('bash', script, wheel.parent, out, '--quick', '--only', 'tests', PATH=path)
    assert 'from the wheel' in text
    assert 'tests: done' in text
    assert {each.name for each in out.iterdir()} == {'check_env.txt', 'report.md', 'README.md', 'parts.tar.gz'}
    with tarfile.open(out / 'parts.tar.gz') as archive:
        assert 'gpu_report/tests.json' in archive.getnames()
