"""Latency of exported files."""

import json

import pytest
import torch
from torch import nn


class Small(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) + 1


@pytest.fixture
def tool(load_tool):
    return load_tool('deployment/benchmark.py')


@pytest.fixture
def files(load_tool, tmp_path):
    """A file of each format, made for images of 16 x 24."""
    export = load_tool('deployment/export.py')
    model = export.Exported(Small(), (0, 0, 0), (1, 1, 1), bgr=False, normalize=False)
    metadata = dict(outputs=['logits'], size=[16, 24], dynamic_size=True)
    formats = ['torchscript', 'exported']
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        formats.append('onnx')
    except ImportError:
        pass
    for format in formats:
        (tmp_path / format).write_bytes(export.export(model, metadata, format))
    return [str(tmp_path / format) for format in formats]


def test_every_file_is_timed_with_each_number_of_threads(tool, files, tmp_path, capsys):
    before = torch.get_num_threads()
    tool.main([*files, '--threads', '1', '2', '--rounds', '4', '--json', str(tmp_path / 'out.json')])
    torch.set_num_threads(before)
    figures = json.loads((tmp_path / 'out.json').read_text())
    rows = figures['rows']
    assert [(row['file'], row['threads']) for row in rows] == [(path, count) for count in (1, 2) for path in files]
    assert all(row['format'] == row['file'].rpartition('/')[2] for row in rows)
    assert all(0 < row['median_ms'] <= row['p95_ms'] for row in rows)
    assert figures['torch'] == torch.__version__
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows)


def test_the_images_have_the_size_in_the_file_or_the_given_one(tool, files, monkeypatch):
    shapes = []
    loaded = tool.load

    def load(content, threads):
        run, metadata = loaded(content, threads)
        return lambda images: shapes.append(tuple(images.shape)) or run(images), metadata

    monkeypatch.setattr(tool, 'load', load)
    for options in ([], ['--size', '32', '--batch-size', '3']):
        tool.prepare(files[0], 1, tool.parse_args([files[0], *options]))
    assert set(shapes) == {(1, 3, 16, 24), (3, 3, 32, 32)}


def test_calls_alternate_and_are_summarized(tool):
    order = []
    times = tool.time_calls({name: lambda name=name: order.append(name) for name in 'ab'}, rounds=3)
    assert order == list('ababab')
    assert [len(each) for each in times.values()] == [3, 3]
    assert tool.summarize([float(value) for value in range(101)]) == dict(median_ms=50, p95_ms=95)


def test_broken_files_are_named(tool, tmp_path):
    (tmp_path / 'text').write_text('hello')
    torch.jit.save(torch.jit.trace(Small(), torch.rand(1, 3, 4, 4)), tmp_path / 'other.pt')
    torch.jit.save(torch.jit.trace(nn.Linear(5, 2), torch.rand(1, 5)), tmp_path / 'linear.pt')
    for name, options, message in (
        ('nowhere', [], 'There is no file at'),
        ('text', [], 'text" cannot be loaded'),
        ('other.pt', [], 'does not say the size of its images: give --size'),
        ('linear.pt', ['--size', '8'], r'does not run on (1, 3, 8, 8)'),
    ):
        with pytest.raises(SystemExit) as raised:
            tool.main([str(tmp_path / name), *options])
        assert message in str(raised.value)


def test_arguments_are_checked(tool, capsys):
    for option in ('--threads', '--rounds', '--batch-size', '--size'):
        with pytest.raises(SystemExit):
            tool.parse_args(['model.onnx', option, '0'])
        assert f'{option} must be larger than 0' in capsys.readouterr().err
