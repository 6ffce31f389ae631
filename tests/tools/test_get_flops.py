import pytest
import torch
from helpers.models import load_script
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

import qbheat_mm  # noqa: F401
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS

get_flops = load_script('tools/analysis_tools/get_flops.py')

# Counted with fvcore on the authors' code, in millions: parameters with and without the classifier, FLOPs and the
# classifier's share of them, the classifier's hidden width.
PUBLISHED = {
    '508m': (13.98, 8.57, 510.6, 22.2, 1920),
    '294m': (11.42, 6.69, 295.4, 15.5, 1920),
    '214m': (9.43, 5.82, 215.3, 11.1, 1600),
    '151m': (7.60, 4.98, 152.0, 7.4, 1280),
    '96m': (4.59, 2.05, 96.3, 7.4, 1280),
    '52m': (3.47, 1.66, 51.8, 4.5, 1024),
    '26m': (3.23, 1.47, 26.0, 2.5, 1024),
}


def classifier(size, hidden_channels):
    settings = ARCH_SETTINGS[size]
    head = dict(
        type='MobileFormerClsHead',
        num_classes=1000,
        in_channels=settings['blocks'][-1][1],
        token_dims=settings['token_dims'],
        groups=settings.get('groups', 1),
        hidden_channels=hidden_channels,
    )
    backbone = dict(type='MobileFormer', arch=size, out_tokens=True)
    return MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head)).eval()


@pytest.mark.parametrize('size', PUBLISHED)
def test_published_sizes(size):
    parameters, trunk_parameters, flops, head_flops, hidden_channels = PUBLISHED[size]
    counts = get_flops.report(classifier(size, hidden_channels), (224, 224))
    assert round(counts['total'][0] / 1e6, 2) == parameters
    assert round(counts['backbone'][0] / 1e6, 2) == trunk_parameters
    assert counts['total'][1] == pytest.approx(flops * 1e6, rel=0.01)
    assert counts['backbone'][1] == pytest.approx((flops - head_flops) * 1e6, rel=0.01)
    assert counts['head'][1] == pytest.approx(head_flops * 1e6, rel=0.02)  # given in two digits


@pytest.mark.parametrize('out_tokens', [True, False])  # with and without the last Local->Global
def test_285m_is_a_5_8_m_parameter_285_mflop_encoder(out_tokens):
    backbone = MODELS.build(dict(type='MobileFormer', arch='285m', out_tokens=out_tokens))
    counts = get_flops.report(classifier('285m', 1920), (224, 224))
    assert counts['backbone'][0] == pytest.approx(5.8e6, rel=0.01)
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone)).eval()
    assert get_flops.report(model, (224, 224))['total'][1] == pytest.approx(285e6, rel=0.01)


def test_the_trained_part_of_a_frozen_detector_is_all_behind_the_backbone():
    for frozen_stages, part in ((3, 'without the backbone'), (-1, 'all')):
        backbone = dict(type='MobileFormer', arch='285m', out_tokens=True, frozen_stages=frozen_stages)
        head = dict(type='MobileFormerClsHead', num_classes=2, in_channels=160, token_dims=192, hidden_channels=8)
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head)).eval()
        counts = get_flops.report(model, (64, 64))
        whole, of_backbone = counts['total'], counts['backbone']
        expected = whole if part == 'all' else tuple(a - b for a, b in zip(whole, of_backbone, strict=True))
        assert get_flops.trained_part(model, counts) == expected


def test_the_time_is_the_least_of_the_runs(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(get_flops.time, 'process_time', lambda: next(clock))
    assert get_flops.milliseconds(lambda: None, 3) == 1000


def test_detectors_attention_is_counted():
    """A transformer's FLOPs, through whichever operators, are those of its formula."""
    tokens, dims, hidden = 7, 16, 24

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, dims, (4, 1), stride=(4, 1))
            self.layer = nn.TransformerEncoderLayer(dims, 2, hidden, batch_first=True)
            self.attention = nn.MultiheadAttention(dims, 2, batch_first=True)

        def forward(self, inputs, data_samples, mode):
            assert data_samples[0].batch_input_shape == inputs.shape[-2:]
            x = self.patches(inputs).flatten(2).transpose(1, 2)
            x = self.layer(x)
            mask = torch.zeros(tokens, tokens)
            return mode, self.attention(x, x, x, attn_mask=mask)

    counts = get_flops.report(Detector().eval(), (4, tokens))
    attention = 4 * tokens * dims**2 + 2 * tokens**2 * dims
    norms = counts['layer'][1] - attention - 2 * tokens * dims * hidden
    assert counts['attention'][1] == attention
    assert norms == 2 * 5 * tokens * dims
    assert counts['total'][1] == sum(flops for name, (_, flops) in counts.items() if name != 'total')


CONFIG = """
custom_imports = dict(imports=['qbheat_mm'], allow_failed_imports=False)
default_scope = '{scope}'
model = {model}
"""
CLASSIFIER = dict(type='ImageClassifier', backbone=dict(type='MobileFormer', arch='52m'))
DETECTOR = dict(
    type='FCOS',
    backbone=dict(type='mmpretrain.MobileFormer', arch='52m', out_indices=(1, 2, 3)),
    neck=dict(type='FPN', in_channels=[24, 64, 96], out_channels=32, num_outs=3),
    bbox_head=dict(type='FCOSHead', num_classes=2, in_channels=32, feat_channels=32, strides=[8, 16, 32]),
)


@pytest.mark.parametrize(('scope', 'model'), [('mmpretrain', CLASSIFIER), ('mmdet', DETECTOR)])
def test_command_line(scope, model, tmp_path, capsys):
    if scope == 'mmdet':
        pytest.importorskip('mmdet')
    (tmp_path / 'config.py').write_text(CONFIG.format(scope=scope, model=model))
    arguments = [str(tmp_path / 'config.py'), '--shape', '64', '96', '--cfg-options', 'model.backbone.norm_eval=True']
    get_flops.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('at 64 x 96')
    counts = {line[:20].strip(): int(line.split()[-1].replace(',', '')) for line in lines[1:]}
    assert counts.pop('trained part') == counts['total']  # nothing is frozen
    assert counts['backbone'] > 0
    assert counts['total'] == sum(flops for name, flops in counts.items() if name != 'total')
    assert Config.fromfile(tmp_path / 'config.py').model.backbone.get('norm_eval') is None


def test_wrong_shape_is_refused(tmp_path, capsys):
    (tmp_path / 'config.py').write_text('')
    with pytest.raises(SystemExit):
        get_flops.main([str(tmp_path / 'config.py'), '--shape', '1', '2', '3'])
    assert '--shape takes a height and a width' in capsys.readouterr().err
