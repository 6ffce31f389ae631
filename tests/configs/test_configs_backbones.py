"""QB-Heat on mmpretrain's own backbones: the configs take a step, what cannot take a quarter is refused."""

import pytest
import torch
from helpers.models import ROOT, qbheat_config, samples_at
from mmengine.config import Config
from mmpretrain.registry import MODELS

# Per config the features' channels and the backbone's layers behind them, which learn nothing.
BACKBONES = {
    'resnet50': (1024, ()),
    'regnetx-400mf': (384, ()),
    'convnext-tiny': (384, ()),
    'swin-tiny': (384, ()),
    'mobilenet-v3-large': (112, ('layer13', 'layer14', 'layer15', 'layer16')),
    'efficientnet-b0': (112, ('layers.5', 'layers.6')),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_one_step_on_mmpretrains_own_backbone(name):
    channels, unused = BACKBONES[name]
    cfg = Config.fromfile(ROOT / f'configs/qbheat/qbheat_{name}_8xb128-amp-coslr-200e_in1k.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    images, samples = torch.randn(2, 3, 224, 224), samples_at([(0, 7), (7, 0)])
    latent = model.encode_visible(images, model._origins(images, samples))
    assert latent.shape == (2, channels, 7, 7)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    loss = model(images, samples, mode='loss')['loss']
    assert torch.isfinite(loss)
    loss.backward()

    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert all(key.removeprefix('backbone.').startswith(unused) for key in without)
    assert bool(without) == bool(unused) == cfg.get('find_unused_parameters', False)  # or else DDP would stop
    first = next(key for key in before if key.startswith('backbone.'))
    parameters = dict(model.named_parameters())
    for key in (first, 'neck.generator_x', 'neck.generator_y'):
        assert parameters[key].grad.any(), key
    optimizer.step()
    assert all(not torch.equal(before[key], parameters[key]) for key in (first, 'neck.generator_x', 'neck.generator_y'))


def config_with(backbone: dict, channels: int, img_size: int = 224, **kwargs) -> dict:
    config = qbheat_config(img_size=img_size) | dict(backbone=backbone) | kwargs
    config['neck']['in_channels'] = config['head']['decoder']['in_channels'] = channels
    return config


@pytest.mark.parametrize(
    ('backbone', 'reason'),
    [
        (dict(type='MlpMixer', arch='small'), r'MlpMixer cannot encode a quarter of 112 x 112 px.*img_size=112'),
        (
            dict(type='BEiTViT', arch='deit-tiny', out_type='featmap', use_abs_pos_emb=False, use_rel_pos_bias=True),
            r'BEiTViT cannot encode a quarter of 112 x 112 px.*img_size=112',
        ),
        (dict(type='VisionTransformer', arch='deit-tiny', out_type='cls_token'), r"gives \(1, 192\).*'featmap'"),
        (dict(type='VisionTransformer', arch='deit-tiny', out_type='raw'), r"gives \(1, 50, 192\).*'featmap'"),
        (dict(type='ConvNeXt', arch='atto', out_indices=(2,)), r'gives \(1, 160\).*gap_before_final_norm=False'),
        (dict(type='ResNet', depth=18), r'4 x 4 features, but patch_size=16.*out_indices'),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_a_backbone_that_cannot_take_a_quarter_is_refused_with_the_reason(backbone, reason):
    with pytest.raises(ValueError, match=reason):
        MODELS.build(config_with(backbone, 192))


def test_a_window_larger_than_the_quarters_map_is_refused_with_swins_own_remedy():
    backbone = dict(
        type='SwinTransformer', arch=dict(embed_dims=24, depths=[1, 1, 1], num_heads=[1, 1, 1]), out_indices=(2,)
    )
    with pytest.raises(ValueError, match='pad_small_map=True'):
        MODELS.build(config_with(backbone, 96, img_size=128))
    MODELS.build(config_with(backbone | dict(pad_small_map=True), 96, img_size=128))


def test_a_backbone_of_fixed_size_is_built_for_the_quarter():
    backbone = dict(
        type='BEiTViT', arch='deit-tiny', out_type='featmap', img_size=112, use_abs_pos_emb=False, use_rel_pos_bias=True
    )
    model = MODELS.build(config_with(backbone, 192))
    assert torch.isfinite(model.loss(torch.randn(1, 3, 224, 224), samples_at([(7, 7)]))['loss'])


def test_the_feature_level_is_a_field_of_the_config():
    backbone = dict(type='ResNet', depth=18, out_indices=(1, 2, 3))
    model = MODELS.build(config_with(backbone, 256, feature_index=1))
    images = torch.randn(1, 3, 224, 224)
    origin = torch.tensor([(0, 0)])
    model.eval()
    assert torch.equal(model.encode_visible(images, origin), model.backbone(images[..., :112, :112])[1])
    with pytest.raises(ValueError, match=r'14 x 14 features, but patch_size=16.*feature_index=0'):
        MODELS.build(config_with(backbone, 128, feature_index=0))
