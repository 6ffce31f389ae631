"""The table of latencies."""

import pytest
import torch
from torch import nn

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
NAMES = ('Mobile-Former 26m', 'ResNet-18')


@pytest.fixture
def tool(load_tool, monkeypatch):
    tool = load_tool('deployment/latency.py')
    monkeypatch.setattr(tool, 'SIDE', 8)
    return tool


def small(name: str) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, NAMES.index(name) + 1))


def test_the_page_gets_the_table(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'build', small)
    page = tmp_path / 'page.md'
    page.write_text(f'# Latency\n\n{tool.MARKS[0]}old\n{tool.MARKS[1]}\nWhat it means.\n')
    options = ['--threads', '1', '2', '--rounds', '3', '--models', *NAMES, '--work-dir', str(tmp_path / 'files')]
    before = torch.get_num_threads()
    for _ in range(2):  # the second time from the files of the first
        tool.main([*options, '--write', str(page)])
    torch.set_num_threads(before)
    text = page.read_text()
    assert text.startswith(f'# Latency\n\n{tool.MARKS[0]}| model | parameters | PyTorch, 1 | ONNX, 1 | PyTorch, 2 |')
    assert text.endswith(f'{tool.MARKS[1]}\nWhat it means.\n')
    assert 'old' not in text
    rows = [line.split(' | ') for line in text.splitlines() if line.startswith(tuple(f'| {name}' for name in NAMES))]
    assert [len(row) for row in rows] == [6, 6]
    assert f'torch {torch.__version__}' in text
    assert capsys.readouterr().out.splitlines()[-1] in text
    assert sorted(path.name for path in (tmp_path / 'files').iterdir()) == ['mobile-former-26m.onnx', 'resnet-18.onnx']


def test_a_page_without_marks_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'measure', lambda args: [])
    page = tmp_path / 'page.md'
    page.write_text('# Latency\n')
    with pytest.raises(SystemExit, match='lacks the lines'):
        tool.main(['--write', str(page)])
    assert page.read_text() == '# Latency\n'
    with pytest.raises(SystemExit, match='No such file'):
        tool.main(['--write', str(tmp_path / 'nowhere.md')])


@pytest.mark.slow
def test_every_model_is_built(tool):
    for name in tool.parse_args([]).models:
        with torch.inference_mode():
            assert tool.build(name)(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_arguments_are_checked(tool, capsys):
    for options, message in ((['--rounds', '0'], 'larger than 0'), (['--models', 'AlexNet'], 'invalid choice')):
        with pytest.raises(SystemExit):
            tool.parse_args(options)
        assert message in capsys.readouterr().err
