"""Exported files compute what PyTorch computes."""

import pytest
import torch
from helpers.deployment import FORMATS, check_refused, reload, run_tool
from helpers.models import ROOT, TINY_ARCH, frozen_classifier_config, qbheat_config, write_images
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS

CLASSES = ('cat', 'dog')


@pytest.fixture
def tool(load_tool):
    return load_tool('deployment/export.py')


def write(folder, model: dict) -> list[str]:
    """A config and a checkpoint, as a run leaves them; returns their paths."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    built = MODELS.build(model)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):  # which else does nothing
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), folder / 'model.pth')
    Config(dict(model=model)).dump(folder / 'config.py')
    return [str(folder / 'config.py'), str(folder / 'model.pth')]


@pytest.fixture
def classifier(tmp_path):
    model = frozen_classifier_config()
    model['data_preprocessor'] = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
    model['backbone'] = dict(type='MobileFormer', arch=dict(TINY_ARCH, blocks=TINY_ARCH['blocks'][:3]))
    model['head']['in_channels'] = 12
    return write(tmp_path / 'classifier', model)


@pytest.mark.parametrize('format', FORMATS)
def test_a_classifier_takes_raw_images_in_batches_of_any_size(tool, classifier, tmp_path, format):
    out = tmp_path / 'deployed' / f'model.{format}'
    options = ['--to', format, '--out', out, '--size', 64, 96, '--normalize', '--images', tmp_path / 'images']
    write_images(tmp_path / 'images', 3, size=80)
    assert run_tool(tool, *classifier, *options) <= 1e-4
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    run, metadata = reload(out, format)
    assert metadata['classes'] == list(CLASSES)
    assert metadata['size'] == [64, 96]
    assert metadata['normalized_inside']
    assert metadata['color'] == 'RGB'
    model = MODELS.build(Config.fromfile(classifier[0]).model).eval()
    model.load_state_dict(torch.load(classifier[1])['state_dict'])
    images = torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8)
    inputs = model.data_preprocessor(dict(inputs=images.flip(1)))['inputs']  # BGR, as OpenMMLab loads
    with torch.no_grad():
        torch.testing.assert_close(run(images / 255)[0], model(inputs), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    'format', ['exported', *(pytest.param(each, marks=pytest.mark.slow) for each in ('onnx', 'torchscript'))]
)
def test_a_backbone_gives_stages_and_tokens_at_other_sizes(tool, tmp_path, format):
    files = write(tmp_path / 'qbheat', qbheat_config())
    options = ['--to', format, '--out', tmp_path / 'model', '--size', 64, '--dynamic-size', '--backbone']
    assert run_tool(tool, *files, *options, '--stages', 1, 3, '--tokens') <= 1e-4
    run, metadata = reload(tmp_path / 'model', format)
    assert metadata['outputs'] == ['features_0', 'features_1', 'tokens']
    assert metadata['strides'] == [8, 16, None]
    assert metadata['classes'] is None
    with torch.no_grad():
        outs = run(torch.randn(3, 3, 96, 160))
    assert [tuple(out.shape) for out in outs] == [(3, 12, 12, 20), (3, 20, 6, 10), (3, 2, 16)]


def test_normalization_outside_is_that_of_the_metadata(tool, classifier, tmp_path):
    for name, options in dict(inside=['--normalize'], outside=[]).items():
        run_tool(tool, *classifier, '--to', 'torchscript', '--out', tmp_path / name, '--size', 64, *options)
    inside, _ = reload(tmp_path / 'inside', 'torchscript')
    outside, metadata = reload(tmp_path / 'outside', 'torchscript')
    mean, std = (torch.tensor(metadata[name])[:, None, None] for name in ('mean', 'std'))
    images = torch.rand(2, 3, 64, 64)
    assert not metadata['normalized_inside']
    torch.testing.assert_close(outside((images - mean) / std)[0], inside(images)[0])


@pytest.mark.parametrize('format', FORMATS)
def test_images_of_any_size_are_resized_inside(tool, classifier, tmp_path, format):
    options = ['--to', format, '--size', 64, 32, '--normalize']
    write_images(tmp_path / 'images', 2, size=90)
    resized = ['--resize', '--images', tmp_path / 'images']
    assert run_tool(tool, *classifier, *options, '--out', tmp_path / 'resizing', *resized) <= 1e-4
    run_tool(tool, *classifier, '--to', 'torchscript', *options[2:], '--out', tmp_path / 'fixed')
    resizing, metadata = reload(tmp_path / 'resizing', format)
    fixed, other = reload(tmp_path / 'fixed', 'torchscript')
    assert (metadata['resized_inside'], other['resized_inside']) == (True, False)
    assert metadata['size'] == [64, 32]
    for size in ((64, 32), (200, 130), (40, 300)):
        images = torch.rand(3, 3, *size)
        small = nn.functional.interpolate(images, (64, 32), mode='bilinear', antialias=True)
        torch.testing.assert_close(resizing(images)[0], fixed(small)[0], atol=1e-4, rtol=1e-3)


def test_a_file_that_computes_something_else_is_not_written(tool, classifier, tmp_path, monkeypatch):
    exact = tool.to_exported

    def inexact(model, *rest):
        model.model.head.fc.bias.data += 0.01
        try:
            return exact(model, *rest)
        finally:
            model.model.head.fc.bias.data -= 0.01

    monkeypatch.setattr(tool, 'to_exported', inexact)
    out = tmp_path / 'deployed' / 'model'
    options = ['--to', 'exported', '--out', out, '--size', 64]
    with pytest.raises(tool.ExportError, match=r'differ by .* more than --tolerance 0\.0001; nothing is written'):
        run_tool(tool, *classifier, *options)
    assert not out.parent.exists()
    assert 1e-4 < run_tool(tool, *classifier, *options, '--tolerance', 1) < 1


def test_nan_is_a_difference(tool):
    class Broken(nn.Module):
        def forward(self, images):
            return images * torch.nan

    model = tool.Exported(Broken(), (0, 0, 0), (1, 1, 1), bgr=False, normalize=False)
    difference = tool.largest_difference(model, model, [torch.rand(1, 3, 4, 4)])
    assert difference != difference


def test_a_fixed_batch_is_found(tool, classifier):
    model, metadata = tool.build(tool.parse_args([*classifier, '--to', 'exported', '--out', 'x', '--size', '64']))
    program = torch.export.export(model, (torch.rand(2, 3, 64, 64),)).module()
    with pytest.raises(tool.ExportError, match=r'does not run on images of \(1, 3, 64, 64\)'):
        tool.largest_difference(model, program, tool.comparison_batches(None, metadata))


def test_what_cannot_be_exported_is_said(tool, classifier, monkeypatch):
    model, metadata = tool.build(tool.parse_args([*classifier, '--to', 'exported', '--out', 'x', '--size', '64']))
    monkeypatch.setattr(tool.Exported, 'forward', lambda self, images: (images[: int(images.sum())],))
    with pytest.raises(tool.ExportError, match='PyTorch cannot export this model to exported'):
        tool.export(model, metadata, 'exported')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(config='nowhere.py'), 'There is no config at "nowhere.py"'),
        (dict(checkpoint='nowhere.pth'), 'There is no checkpoint at "nowhere.pth"'),
        (dict(checkpoint=None), 'No checkpoint is named for ImageClassifier'),
        (dict(out='{tmp}/file/model'), 'file" cannot be written to (Not a directory)'),
        (dict(out='{tmp}/file'), 'exists already'),
        (dict(images='{tmp}/empty'), 'no image in'),
        (dict(config='{tmp}/qbheat/config.py', checkpoint='{tmp}/qbheat/model.pth'), '--backbone exports its backbone'),
        (dict(checkpoint='{tmp}/qbheat/model.pth'), 'does not fit ImageClassifier. missing: '),
        (dict(config='{tmp}/qbheat/config.py', backbone=''), 'does not fit MobileFormer. missing: '),
    ],
)
def test_broken_input_is_named_and_leaves_nothing(tool, classifier, tmp_path, changes, message):
    write(tmp_path / 'qbheat', qbheat_config())
    (tmp_path / 'file').write_text('here before')
    (tmp_path / 'empty').mkdir()
    given = dict(config=classifier[0], checkpoint=classifier[1], to='torchscript', out='{tmp}/out/model', size='64')
    given = {name: value.format(tmp=tmp_path) for name, value in (given | changes).items() if value is not None}
    arguments = [given.pop('config'), *([given.pop('checkpoint')] if 'checkpoint' in given else [])]
    for name, value in given.items():
        arguments += [f'--{name}', *([value] if value else [])]
    check_refused(tool, arguments, message, tmp_path)
    assert (tmp_path / 'file').read_text() == 'here before'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--to', 'coreml'], 'invalid choice'),
        (['--size', '1', '2', '3'], '--size takes'),
        (['--size', '0'], '--size takes'),
        (['--tokens'], 'need --backbone'),
        (['--resize', '--dynamic-size'], 'choose one'),
    ],
)
def test_arguments_are_checked(tool, capsys, options, message):
    with pytest.raises(SystemExit):
        tool.parse_args(['config.py', 'model.pth', '--to', 'onnx', '--out', 'model.onnx', *options])
    assert message in capsys.readouterr().err


def test_code_in_a_checkpoint_runs_only_if_it_is_trusted(tool, classifier, tmp_path):
    content = torch.load(classifier[1])
    torch.save(dict(content, hook=Config()), tmp_path / 'pickled.pth')
    options = ['--to', 'torchscript', '--out', tmp_path / 'model', '--size', 64]
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        run_tool(tool, classifier[0], tmp_path / 'pickled.pth', *options)
    run_tool(tool, classifier[0], tmp_path / 'pickled.pth', *options, '--trust-checkpoint')


@pytest.mark.slow
@pytest.mark.parametrize('size', sorted(ARCH_SETTINGS))
def test_every_size_exports(tool, tmp_path, size):
    (config,) = (ROOT / 'configs/mobile_former').glob(f'mobile-former-{size}_8xb128-coslr-450e_in1k.py')
    cfg = Config.fromfile(config)
    preprocessor = dict(cfg.data_preprocessor)
    preprocessor.pop('num_classes')
    files = write(tmp_path, dict(cfg.model, data_preprocessor=preprocessor))
    assert run_tool(tool, *files, '--to', 'onnx', '--out', tmp_path / 'model.onnx', '--size', 64) <= 1e-4
    assert run_tool(tool, *files, '--to', 'torchscript', '--out', tmp_path / 'model.pt', '--size', 64) <= 1e-4
