"""Operators of an ONNX file and their time."""

import pytest
from torch import nn

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


@pytest.fixture
def tool(load_tool):
    return load_tool('deployment/profile_ops.py')


def write(load_tool, path, **metadata):
    export = load_tool('deployment/export.py')
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 144, 2))
    exported = export.Exported(model, (0.0,) * 3, (1.0,) * 3, bgr=False, normalize=False)
    fields = dict(outputs=['logits'], size=[16, 16], batch_size=1, dynamic_size=False, resized_inside=False)
    path.write_bytes(export.export(exported, fields | metadata, 'onnx'))
    return str(path)


def test_nodes_are_counted_and_timed(tool, load_tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(load_tool, tmp_path / 'model.onnx')
    ops = tool.profile(tool.parse_args([file, '--rounds', '3']))
    assert ops['Conv'][0] == 2
    assert sum(count for op, (count, _) in ops.items() if op in ('Gemm', 'FusedGemm')) == 1
    times = [time for _, time in ops.values()]
    assert times == sorted(times, reverse=True)
    assert times[0] > 0
    tool.main([file, '--rounds', '3'])
    assert capsys.readouterr().out.splitlines()[-1].startswith('all ')
    assert [path.name for path in tmp_path.iterdir()] == ['model.onnx']


def test_broken_files_are_named(tool, load_tool, tmp_path):
    (tmp_path / 'text').write_text('hello')
    file = write(load_tool, tmp_path / 'model.onnx', size=[16, 16])
    for path, options, message in (
        ('nowhere', [], 'There is no file at'),
        (tmp_path / 'text', [], 'cannot be loaded'),
        (file, ['--size', '24'], 'does not run on images of 24 x 24'),
    ):
        with pytest.raises(SystemExit) as raised:
            tool.main([str(path), *options])
        assert message in str(raised.value)


def test_arguments_are_checked(tool, capsys):
    for option in ('--threads', '--rounds', '--size'):
        with pytest.raises(SystemExit):
            tool.parse_args(['model.onnx', option, '0'])
        assert 'must be larger than 0' in capsys.readouterr().err
