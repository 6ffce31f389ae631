"""Latency of exported files."""

import json
from pathlib import Path

import pytest
import torch
from helpers.models import frozen_classifier_config
from mmengine.config import Config
from mmpretrain.registry import MODELS
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
    metadata = dict(outputs=['logits'], size=[16, 24], dynamic_size=True, resized_inside=False, batch_size=None)
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
    assert all(0 < row['min_ms'] <= row['median_ms'] <= row['p95_ms'] for row in rows)
    assert all(row['mib'] == Path(row['file']).stat().st_size / 2**20 for row in rows)
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
        run, metadata, _ = tool.open_file(files[0], 1)
        tool.prepare(files[0], run, metadata, tool.parse_args([files[0], *options]))
    assert set(shapes) == {(1, 3, 16, 24), (3, 3, 32, 32)}


def test_calls_alternate_and_are_summarized(tool):
    order = []
    times = tool.time_calls({name: lambda name=name: order.append(name) for name in 'ab'}, rounds=3)
    assert order == list('ababab')
    assert [len(each) for each in times.values()] == [3, 3]
    assert tool.summarize([float(value) for value in range(101)]) == dict(min_ms=0, median_ms=50, p95_ms=95)


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


def test_the_model_of_a_config_is_timed_as_it_is(tool, files, tmp_path, capsys):
    torch.manual_seed(0)
    cfg = frozen_classifier_config()
    torch.save(dict(state_dict=MODELS.build(cfg).state_dict()), tmp_path / 'model.pth')
    Config(dict(model=cfg)).dump(tmp_path / 'config.py')
    options = ['--eager', str(tmp_path / 'config.py'), str(tmp_path / 'model.pth'), '--size', '32', '--rounds', '2']
    for more in ([], ['--backbone']):
        tool.main([files[0], *options, *more])
        assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ['torchscript', 'eager']
    with pytest.raises(SystemExit, match='There is no checkpoint at'):
        tool.main([files[0], '--eager', str(tmp_path / 'config.py'), 'nowhere.pth'])


def test_where_nothing_can_be_written_nothing_is_timed(tool, files, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'measure', lambda args: pytest.fail('timed'))
    (tmp_path / 'text').write_text('here before')
    with pytest.raises(SystemExit, match='cannot be written to'):
        tool.main([*files, '--json', str(tmp_path / 'text' / 'out.json')])
    assert (tmp_path / 'text').read_text() == 'here before'


def test_arguments_are_checked(tool, capsys):
    for option in ('--threads', '--rounds', '--batch-size', '--size'):
        with pytest.raises(SystemExit):
            tool.parse_args(['model.onnx', option, '0'])
        assert f'{option} must be larger than 0' in capsys.readouterr().err
