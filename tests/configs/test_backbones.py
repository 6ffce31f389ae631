"""QB-Heat on mmpretrain's own backbones: the configs take a step, unsuitable outputs are refused."""

import pytest
import torch
from helpers.models import ROOT, qbheat_config, samples_at
from mmengine.config import Config
from mmpretrain.registry import MODELS

from qbheat_mm.models.utils import crop_quarter

# Per config the channels of the features, and the layers of the backbone after them, which get no gradient.
BACKBONES = {
    'resnet50': (1024, ()),
    'regnetx-400mf': (384, ()),
    'convnext-tiny': (384, ()),
    'swin-tiny': (384, ()),
    'mobilenet-v3-large': (112, ('layer13', 'layer14', 'layer15', 'layer16')),
    'efficientnet-b0': (112, ('layers.5', 'layers.6')),
}
BEIT = dict(type='BEiTViT', arch='deit-tiny', out_type='featmap', use_abs_pos_emb=False, use_rel_pos_bias=True)
SWIN = dict(type='SwinTransformer', arch=dict(embed_dims=24, depths=[1, 1, 1], num_heads=[1, 1, 1]), out_indices=(2,))
VIT = dict(type='VisionTransformer', arch='deit-tiny')


@pytest.mark.parametrize('name', BACKBONES)
def test_one_step_on_mmpretrains_own_backbone(name):
    channels, unused = BACKBONES[name]
    cfg = Config.fromfile(ROOT / f'configs/qbheat/qbheat_{name}_8xb128-amp-coslr-200e_in1k.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    images, origins = torch.randn(2, 3, 224, 224), [(0, 7), (7, 0)]
    assert model.encode(crop_quarter(images, torch.tensor(origins), 16)).shape == (2, channels, 7, 7)
    parameters = dict(model.named_parameters())
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    loss = model(images, samples_at(origins), mode='loss')['loss']
    assert torch.isfinite(loss)
    loss.backward()
    without = [key for key, parameter in parameters.items() if parameter.grad is None]
    assert all(key.removeprefix('backbone.').startswith(unused) for key in without)
    assert bool(without) == bool(unused) == cfg.get('find_unused_parameters', False)  # or else DDP would stop
    torch.optim.SGD(model.parameters(), 1.0).step()
    first = next(key for key in before if key.startswith('backbone.'))
    for key in (first, 'neck.generator_x', 'neck.generator_y'):
        assert parameters[key].grad.any(), key
        assert not torch.equal(before[key], parameters[key]), key


def build(backbone: dict, channels: int):
    return MODELS.build(
        qbheat_config(backbone=backbone, **{key: dict(in_channels=channels) for key in ('neck', 'decoder')})
    )


@pytest.mark.parametrize(
    ('backbone', 'size', 'reason'),
    [
        (VIT | dict(out_type='cls_token'), 224, r"gives \(1, 192\).*'featmap'"),
        (VIT | dict(out_type='raw'), 224, r"gives \(1, 50, 192\).*'featmap'"),
        (dict(type='ConvNeXt', arch='atto', out_indices=(2,)), 224, r'gives \(1, 160\).*gap_before_final_norm=False'),
        (dict(type='ResNet', depth=18), 224, r'4 x 4 features.*patch_size=16.*out_indices'),
        (dict(type='ResNet', depth=18, out_indices=(0, 1)), 224, r'14 x 14 features.*patch_size=16.*out_indices'),
        # by the backbones themselves
        (dict(type='MlpMixer', arch='small'), 224, r"doesn't support dynamic input shape"),
        (BEIT, 224, r'size of tensor'),
        (SWIN, 128, 'pad_small_map=True'),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_a_backbone_that_gives_no_map_of_the_quarter_is_refused(backbone, size, reason):
    with pytest.raises((ValueError, AssertionError, RuntimeError), match=reason):
        build(backbone, 192).loss(torch.randn(1, 3, size, size), samples_at([(0, 0)]))


@pytest.mark.parametrize(
    ('backbone', 'channels', 'size'),
    [
        (SWIN | dict(pad_small_map=True), 96, 128),
        (BEIT | dict(img_size=112), 192, 224),
        (dict(type='ResNet', depth=18, out_indices=(1, 2)), 256, 224),
    ],
    ids=['swin', 'beit', 'resnet'],
)
def test_remedies_and_the_choice_of_an_output_give_a_loss_on_the_last_output(backbone, channels, size):
    model, images = build(backbone, channels).eval(), torch.randn(1, 3, size, size)
    assert torch.isfinite(model.loss(images, samples_at([(0, 0)]))['loss'])
    quarter = images[..., : size // 2, : size // 2]
    assert torch.equal(model.encode(quarter), model.backbone(quarter)[-1])
