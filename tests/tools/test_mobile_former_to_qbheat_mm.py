"""The converter, and through it the whole of Mobile-Former against the authors' numbers."""

import argparse
import errno
import json
import os
from functools import cache

import numpy as np
import pytest
import torch
from helpers.models import ROOT, load_script
from mmpretrain.registry import MODELS

import qbheat_mm  # noqa: F401
from qbheat_mm.checkpoint import CheckpointError, load_pretrained
from qbheat_mm.models import MobileFormer
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS

DATA = ROOT / 'tests/data/mobile_former'
SIZES = ('26m', '96m', '294m', '508m')


converter = load_script('tools/model_converters/mobile_former_to_qbheat_mm.py')
formulas = load_script('tests/data/mobile_former/fill.py')


@cache
def authors_weights(size):
    shapes = json.loads((DATA / f'{size}_state_dict.json').read_text())
    return {key: torch.from_numpy(np.asarray(formulas.fill(key, tuple(shape)))) for key, shape in shapes.items()}


def classifier(size, num_classes=1000):
    settings = ARCH_SETTINGS[size]
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='MobileFormer', arch=size, out_tokens=True),
            head=dict(
                type='MobileFormerClsHead',
                num_classes=num_classes,
                in_channels=settings['blocks'][-1][1],
                token_dims=settings['token_dims'],
                hidden_channels=converter.CLASSIFIER_WIDTHS[size],
                groups=settings.get('groups', 1),
            ),
        )
    ).eval()


def outputs_by_name(model, image):
    """The outputs that the reference files hold, by their names there."""
    outputs = {}
    backbone = model.backbone
    blocks = [block for stage in backbone.stages for block in stage]
    handles = [backbone.stem.register_forward_hook(lambda m, i, out: outputs.update(stem=out.clone()))]
    for i, block in enumerate(blocks):
        handles.append(
            block.register_forward_hook(
                lambda m, args, out, name=f'block{i}': outputs.update(
                    {name: out[0].clone(), 'tokens_in': out[1].clone()}
                )
            )
        )
    with torch.no_grad():
        outputs['tokens_out'] = backbone(image)[-1]
        for handle in handles:
            handle.remove()
        outputs['logits'] = model(image)
    last = f'block{len(blocks) - 1}'
    whole = (last, 'tokens_in', 'tokens_out', 'logits')
    return {name: out.numpy() if name in whole else out[..., ::4, ::4].numpy() for name, out in outputs.items()}


@pytest.mark.parametrize('size', SIZES)
def test_every_block_computes_what_the_authors_compute(size):
    model = classifier(size)
    model.load_state_dict(converter.convert(authors_weights(size)))
    reference = np.load(DATA / f'{size}.npz')
    for kind, shape in (('square', (2, 3, 64, 64)), ('wide', (1, 3, 64, 96))):
        outputs = outputs_by_name(model, torch.from_numpy(formulas.image(shape)))
        assert {f'{kind}/{name}' for name in outputs} == {name for name in reference if name.startswith(kind)}
        for name, out in outputs.items():
            expected = reference[f'{kind}/{name}']
            assert out.shape == expected.shape, (kind, name)
            assert np.abs(out - expected).max() <= 1e-4 * np.abs(expected).max(), (kind, name)


WRAPS = {
    'plain': lambda weights: weights,
    'state_dict': lambda weights: dict(state_dict=weights, epoch=450),
    'model': lambda weights: dict(model=weights),
    'module.': lambda weights: dict(state_dict={'module.' + key: value for key, value in weights.items()}),
}


@pytest.mark.parametrize(('size', 'wrap'), zip(SIZES, WRAPS, strict=True))
def test_converted_file_loads_strictly_however_the_weights_are_wrapped(size, wrap, tmp_path):
    torch.save(WRAPS[wrap](authors_weights(size)), tmp_path / 'theirs.pth')
    assert converter.convert_file(tmp_path / 'theirs.pth', tmp_path / 'new' / 'ours.pth') == size
    content = torch.load(tmp_path / 'new' / 'ours.pth', weights_only=True)
    assert list(content) == ['state_dict']
    assert os.listdir(tmp_path / 'new') == ['ours.pth']
    classifier(size).load_state_dict(content['state_dict'])  # strict
    backbone = MobileFormer(size)
    load_pretrained(backbone, tmp_path / 'new' / 'ours.pth', prefix='backbone.')
    assert torch.equal(backbone.tokens, authors_weights(size)['tokens.weight'])


def test_layouts_of_all_sizes_are_distinct():
    for size in converter.CLASSIFIER_WIDTHS:
        state_dict = {key: torch.empty(shape, device='meta') for key, (_, shape) in converter.layout(size).items()}
        assert converter.recognize_size(state_dict) == size


def test_other_classes_are_fine():
    weights = dict(authors_weights('26m'))
    for leaf in ('weight', 'bias'):
        weights[f'classifier.classifier.1.{leaf}'] = weights[f'classifier.classifier.1.{leaf}'][:10]
    classifier('26m', num_classes=10).load_state_dict(converter.convert(weights))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: d.pop('features.3.hyper1.hyper.0.weight'), r'"features.3.hyper1.hyper.0.weight" is missing'),
        (
            lambda d: d.update({'stem.0.weight': torch.zeros(9, 3, 3, 3)}),
            r'"stem.0.weight" is \(9, 3, 3, 3\) where 26m',
        ),
        (lambda d: d.update(extra=torch.zeros(1)), '"extra" is not part of it'),
        (lambda d: d.pop('classifier.classifier.1.weight'), '"classifier.classifier.1.weight" is missing'),
        (
            lambda d: d.update({'classifier.classifier.1.weight': torch.tensor(0.0)}),
            r'"classifier.classifier.1.weight" is \(\) where',
        ),
    ],
)
def test_unknown_layout_is_refused_with_the_first_difference(change, message):
    weights = dict(authors_weights('26m'))
    change(weights)
    with pytest.raises(CheckpointError, match=f'closest is 26m.*first: {message}'):
        converter.convert(weights)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path / "ran"}',)

    args = argparse.Namespace(epochs=450)
    torch.save(dict(state_dict=authors_weights('26m'), args=args), tmp_path / 'trainer.pth')
    assert converter.convert_file(tmp_path / 'trainer.pth', tmp_path / 'ours.pth') == '26m'
    args.hook = Hostile()
    torch.save(dict(state_dict=authors_weights('26m'), args=args), tmp_path / 'hostile.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        converter.convert_file(tmp_path / 'hostile.pth', tmp_path / 'hostile_ours.pth')
    assert sorted(os.listdir(tmp_path)) == ['hostile.pth', 'ours.pth', 'trainer.pth']


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    torch.save(authors_weights('26m'), tmp_path / 'theirs.pth')

    def refuse(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(OSError, match='No space left'):
        converter.convert_file(tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert os.listdir(tmp_path) == ['theirs.pth']


def test_command_line(tmp_path, capsys):
    torch.save(authors_weights('26m'), tmp_path / 'theirs.pth')
    converter.main([str(tmp_path / 'theirs.pth'), str(tmp_path / 'ours.pth')])
    assert 'Mobile-Former 26m' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r'error: There is no checkpoint at ".*missing.pth"'):
        converter.main([str(tmp_path / 'missing.pth'), str(tmp_path / 'other.pth')])
