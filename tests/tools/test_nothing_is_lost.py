"""Whatever the paths of a converter have in common, each file that was there before it keeps its content."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.models import load_script, write_images

from qbheat_mm.datasets.feature_dataset import write_features

BOX = '<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>'
XML = f'<annotation><object><name>cat</name><bndbox>{BOX}</bndbox></object></annotation>'
SUFFIX = '.0a1b2c3d.partial'


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def run_tool(path: str, *arguments: Path | str) -> None:
    """Run a script, which may refuse: an error message, but no traceback."""
    sys.argv = [path, *map(str, arguments)]
    try:
        load_script(path).main()
    except SystemExit as refused:
        assert refused.code  # noqa: PT017


def class_folders(inputs: dict[str, Path], out: Path) -> None:
    run_tool('tools/dataset_converters/class_folders.py', inputs['images'], out, '--size', '32')


def pack_images(inputs: dict[str, Path], out: Path) -> None:
    run_tool('tools/dataset_converters/pack_images.py', inputs['images'], out, '--workers', '1')


def voc_to_coco(inputs: dict[str, Path], out: Path) -> None:
    options = [f'--{name}={inputs[name]}' for name in ('images', 'annotations', 'split', 'classes')]
    run_tool('tools/dataset_converters/voc_to_coco.py', *options, '--out', out)


def yolo_to_coco(inputs: dict[str, Path], out: Path) -> None:
    options = [f'--{name}={inputs[name]}' for name in ('images', 'labels', 'classes')]
    run_tool('tools/dataset_converters/yolo_to_coco.py', *options, '--out', out)


def mobile_former(inputs: dict[str, Path], out: Path) -> None:
    run_tool('tools/model_converters/mobile_former_to_qbheat_mm.py', inputs['weights'], out)


def publish_model(inputs: dict[str, Path], out: Path) -> None:
    run_tool('tools/model_converters/publish_model.py', inputs['weights'], out)


def make_data(inputs: dict[str, Path], out: Path) -> None:
    run_tool('demo/make_data.py', out)


def features(inputs: dict[str, Path], out: Path) -> None:
    try:
        write_features(out, iter([(torch.zeros(1, 2, 1, 1), torch.zeros(1))]), 1, {}, {})
    except OSError as refused:
        assert str(out) in str(refused)  # noqa: PT017


CONVERTERS = [class_folders, pack_images, voc_to_coco, yolo_to_coco, mobile_former, publish_model, features, make_data]


def pairs(path: Path) -> dict[str, tuple[Path, Path]]:
    """Where an input is moved to, and the output: equal, nested and suffixed."""
    parent, name = path.parent, path.stem
    return dict(
        equal=(path, path),
        inside=(path, path / 'new'),
        around=(parent / 'new' / path.name, parent / 'new'),
        within_a_part=(path, path / 'cat'),
        suffixed=(path, path.with_name(path.name + '.partial')),
        input_suffixed=(path.with_name(name + '.partial'), parent / name),
        input_named_as_temporary=(path.with_name(name + SUFFIX), parent / name),
        input_named_as_unfinished=(path.with_name(name + '.packing'), parent / name),
        another_ending=(path, path.with_suffix('.pth')),
    )


@pytest.fixture
def _empty_demo(monkeypatch):
    """The demo's data without the images, which take seconds."""
    pytest.importorskip('skimage')
    module = load_script('demo/make_data.py')
    for name in ('write_crops', 'write_detection'):
        monkeypatch.setattr(module, name, lambda folder, *args, **kwargs: None)


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    for name in ('cat', 'dog'):
        for path in write_images(tmp_path / 'images' / name, 2, size=32):
            stem = path.relative_to(tmp_path / 'images').with_suffix('')
            for folder, suffix, text in (('xmls', '.xml', XML), ('labels', '.txt', '0 0.5 0.5 0.5 0.5')):
                file = (tmp_path / folder / stem).with_suffix(suffix)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
    (tmp_path / 'classes.txt').write_text('cat\n')
    (tmp_path / 'split.txt').write_text('cat/000\n')
    torch.save(dict(state_dict={'backbone.weight': torch.ones(2)}), tmp_path / 'weights.pth')
    return dict(
        images=tmp_path / 'images',
        annotations=tmp_path / 'xmls',
        labels=tmp_path / 'labels',
        classes=tmp_path / 'classes.txt',
        split=tmp_path / 'split.txt',
        weights=tmp_path / 'weights.pth',
    )


@pytest.mark.parametrize('converter', CONVERTERS, ids=lambda each: each.__name__)
@pytest.mark.parametrize('name', ['images', 'annotations', 'labels', 'classes', 'split', 'weights'])
@pytest.mark.parametrize('kind', list(pairs(Path('x'))))
@pytest.mark.usefixtures('_empty_demo')
def test_every_file_keeps_its_content(inputs, tmp_path, converter, name, kind, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [])
    moved, out = pairs(inputs[name])[kind]
    moved.parent.mkdir(exist_ok=True)
    if moved != inputs[name]:
        inputs[name].rename(moved)
    before = snapshot(tmp_path)
    converter(inputs | {name: moved}, out)
    after = snapshot(tmp_path)
    assert {path: after.get(path) for path in before} == before


def test_they_write_where_nothing_is_in_the_way(inputs, tmp_path, monkeypatch):
    """The refusals above are not due to the inputs."""
    monkeypatch.setattr(sys, 'argv', [])
    for converter in (class_folders, pack_images, voc_to_coco, yolo_to_coco, publish_model, features):
        before = snapshot(tmp_path)
        converter(inputs, tmp_path / converter.__name__ / 'out.pth')
        assert snapshot(tmp_path).keys() > before.keys(), converter.__name__
