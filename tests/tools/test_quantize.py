"""Quantized files: smaller, nearly the same outputs, and what is said of them."""

import json
import re

import pytest
import torch
from helpers.deployment import check_refused, reload
from helpers.models import write_images
from torch import nn

pytest.importorskip('onnxruntime')
SIZE = 16


class Classifier(nn.Module):
    """Which of two colors an image has more of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.fc = nn.Linear(64, 2)
        with torch.no_grad():
            self.conv.weight[:3] = 0
            for channel in range(3):
                self.conv.weight[channel, channel, 1, 1] = 1
            self.fc.weight.mul_(0.01)
            self.fc.weight[0, 0] = self.fc.weight[1, 1] = 5

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))


@pytest.fixture
def tool(load_tool):
    return load_tool('deployment/quantize.py')


@pytest.fixture
def file(load_tool, tmp_path):
    """The classifier as an ONNX file."""
    export = load_tool('deployment/export.py')
    model = export.Exported(Classifier(), (0.5,) * 3, (0.25,) * 3, bgr=False, normalize=False)
    metadata = dict(
        outputs=['logits'],
        classes=['red', 'green'],
        size=[SIZE, SIZE],
        mean=[0.5] * 3,
        std=[0.25] * 3,
        normalized_inside=False,
        resized_inside=False,
        dynamic_size=False,
        batch_size=None,
    )
    path = tmp_path / 'model.onnx'
    path.write_bytes(export.export(model, metadata, 'onnx'))
    return path


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    for name, color in dict(red=(200, 60, 60), green=(60, 200, 60)).items():
        for path in write_images(tmp_path / 'images' / name, 4, size=2 * SIZE, suffix='.png'):
            Image.blend(Image.open(path), Image.new('RGB', (2 * SIZE, 2 * SIZE), color), 0.8).save(path)
    return tmp_path / 'images'


def run(tool, capsys, *arguments) -> str:
    tool.main([str(each) for each in arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize('options', [[], ['--dynamic']], ids=['static', 'dynamic'])
def test_a_quantized_file_computes_nearly_the_same(tool, file, images, tmp_path, capsys, options):
    out = tmp_path / 'int8.onnx'
    printed = run(tool, capsys, file, '--images', images, '--out', out, *options)
    assert float(re.search(r'differ by ([\d.]+)', printed)[1]) < 0.05
    (quantized, metadata), (exact, before) = reload(out, 'onnx'), reload(file, 'onnx')
    assert metadata == before | dict(quantized='dynamic' if options == ['--dynamic'] else 'static')
    sample = 2 * torch.rand(3, 3, SIZE, SIZE) - 1  # in the range of the images
    difference = (quantized(sample)[0] - exact(sample)[0]).abs().max()
    assert 0 < difference < 0.1 * exact(sample)[0].abs().max()


def test_dynamic_quantization_leaves_convolutions(tool, file, images, tmp_path, capsys):
    onnx = pytest.importorskip('onnx')
    shapes = {}
    for name, options in dict(static=[], dynamic=['--dynamic']).items():
        run(tool, capsys, file, '--images', images, '--out', tmp_path / name, *options)
        tensors = onnx.load(tmp_path / name).graph.initializer
        shapes[name] = {tuple(each.dims) for each in tensors if each.data_type == onnx.TensorProto.INT8 and each.dims}
    assert shapes['static'] - shapes['dynamic'] >= {(64, 3, 3, 3)}
    assert shapes['dynamic'] & {(64, 2), (2, 64)}


def test_accuracy_before_and_after(tool, file, images, tmp_path, capsys):
    printed = run(tool, capsys, file, '--images', images, '--accuracy', images, '--out', tmp_path / 'int8.onnx')
    assert 'accuracy 100.0 -> 100.0 %' in printed
    (images / 'red').rename(images / 'other')
    (images / 'green').rename(images / 'red')
    (images / 'other').rename(images / 'green')
    printed = run(tool, capsys, file, '--images', images, '--accuracy', images, '--out', tmp_path / 'swapped.onnx')
    assert 'accuracy 0.0 -> 0.0 %' in printed


def test_images_are_chosen_over_the_whole_list(tool):
    assert tool.chosen(list(range(100)), 4) == [0, 33, 66, 99]
    assert tool.chosen(list(range(3)), 4) == [0, 1, 2]


def test_boxes_that_are_found_again(tool):
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    labels = torch.tensor([0, 1, 0])
    found = boxes + torch.tensor([[1.0], [0.0], [8.0]])
    assert tool._found((boxes, None, labels), (found, None, torch.tensor([0, 1, 0]))).tolist() == [True, True, False]
    assert tool._found((boxes, None, labels), (found, None, torch.tensor([1, 1, 0]))).tolist() == [False, True, False]
    assert tool._found((boxes, None, labels), (found[:0], None, labels[:0])).tolist() == [False] * 3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(file='nowhere.onnx'), 'There is no file at "nowhere.onnx"'),
        (dict(file='{tmp}/text'), 'text" cannot be loaded'),
        (dict(file='{tmp}/model.pt'), 'is no ONNX file: export the model with --to onnx'),
        (dict(file='{tmp}/other.onnx'), 'does not say how its images are normalized'),
        (dict(file='{tmp}/quantized.onnx'), 'is quantized already'),
        (dict(images='{tmp}/empty'), 'no image in'),
        (dict(accuracy='{tmp}/empty'), 'no image in'),
        (dict(accuracy='{tmp}/others'), "no images in folders named as the classes of the file: ['red', 'green']"),
        (dict(out='{tmp}/text/int8.onnx'), 'cannot be written to (Not a directory)'),
        (dict(out='{tmp}/text'), 'exists already'),
    ],
)
def test_broken_input_is_named_and_leaves_nothing(tool, file, images, tmp_path, changes, message):
    onnx = pytest.importorskip('onnx')
    (tmp_path / 'text').write_text('here before')
    (tmp_path / 'empty').mkdir()
    write_images(tmp_path / 'others' / 'blue', 1)
    torch.jit.save(torch.jit.trace(Classifier(), torch.rand(1, 3, 4, 4)), tmp_path / 'model.pt')
    model = onnx.load(file)
    metadata = json.loads(model.metadata_props[0].value)
    for name, props in dict(
        quantized=dict(qbheat_mm=json.dumps(metadata | dict(quantized='static'))), other={}
    ).items():
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, props)
        onnx.save(model, tmp_path / f'{name}.onnx')
    given = dict(file=str(file), images=str(images), out='{tmp}/out/int8.onnx') | changes
    given = {name: value.format(tmp=tmp_path) for name, value in given.items()}
    arguments = [given.pop('file')]
    for name, value in given.items():
        arguments += [f'--{name}', value]
    check_refused(tool, arguments, message, tmp_path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--num-images', '0'], '--num-images must be larger than 0'),
        (['--dynamic', 'static'], 'unrecognized arguments'),
    ],
)
def test_arguments_are_checked(tool, capsys, options, message):
    with pytest.raises(SystemExit):
        tool.parse_args(['model.onnx', '--images', 'photos', '--out', 'int8.onnx', *options])
    assert message in capsys.readouterr().err
