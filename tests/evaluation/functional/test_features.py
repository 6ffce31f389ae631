import pytest
import torch
from helpers.models import build_qbheat, qbheat_config
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.evaluation.functional.features import Moments, build_encoder, calibrate_batch_norm, extract_features


@pytest.fixture
def config() -> Config:
    return Config(dict(model=qbheat_config()))


@pytest.mark.parametrize('whole', [True, False])
def test_encoders_take_the_weights_of_whole_models_and_bare_backbones(config, tmp_path, whole):
    model = build_qbheat()
    torch.save((model if whole else model.backbone).state_dict(), tmp_path / 'model.pth')
    loaded = build_encoder(config, tmp_path / 'model.pth')
    assert not loaded.training
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[key], value)
    config.model.backbone.arch.token_dims = 32
    with pytest.raises(CheckpointError, match='does not fit MobileFormer'):
        build_encoder(config, tmp_path / 'model.pth')


def test_random_encoders_are_untrained_and_reproducible(config):
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='no_such_file.pth')
    first, second, other = (build_encoder(config, seed=seed) for seed in (1, 1, 2))
    key = 'backbone.stem.0.weight'
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], build_qbheat().state_dict()[key])
    assert not first.training


def test_the_models_own_preprocessor_comes_first(config):
    config.model.data_preprocessor = None
    config.data_preprocessor = dict(mean=[1.0] * 3, std=[1.0] * 3)
    assert build_encoder(config).data_preprocessor.mean.flatten().tolist() == [1, 1, 1]
    config.model.data_preprocessor = dict(mean=[2.0] * 3, std=[1.0] * 3)
    assert build_encoder(config).data_preprocessor.mean.flatten().tolist() == [2, 2, 2]


def test_calibration_makes_batch_norms_normalize(config, generator):
    config.model.backbone.frozen_stages = 2  # which keeps them in eval mode otherwise
    encoder = build_encoder(config)
    weights = {key: value.clone() for key, value in encoder.named_parameters()}
    images = [dict(inputs=image) for image in 50 * torch.randn(16, 3, 64, 64, generator=generator) + 100]
    noise = [dict(inputs=image) for image in 1000 * torch.randn(2, 3, 64, 64)]
    calibrate_batch_norm(encoder, DataLoader(noise, 2), 2)  # nothing of it may stay
    calibrate_batch_norm(encoder, DataLoader(images, 8), 16)
    outputs = []
    encoder.backbone.stem[1].register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    list(extract_features(encoder.backbone, encoder.data_preprocessor, DataLoader(images, 8)))
    outputs = torch.cat(outputs).transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs.mean(1), torch.zeros(8), rtol=0, atol=0.05)
    torch.testing.assert_close(outputs.std(1), torch.ones(8), rtol=0, atol=0.1)
    assert not any(module.training for module in encoder.modules())
    assert all(torch.equal(value, weights[key]) for key, value in encoder.named_parameters())


def test_calibration_on_less_than_a_batch_takes_a_whole_one(config, generator):
    images = [dict(inputs=image) for image in torch.randn(4, 3, 64, 64, generator=generator)]
    fewer, whole = (build_encoder(config) for _ in range(2))
    calibrate_batch_norm(fewer, DataLoader(images, 4), 1)
    calibrate_batch_norm(whole, DataLoader(images, 4), 4)
    norm = fewer.backbone.stem[1]
    assert norm.running_var.all()
    assert torch.equal(norm.running_var, whole.backbone.stem[1].running_var)


def test_extraction_takes_the_feature_maps(config):
    loader = [dict(inputs=torch.randn(2, 3, 64, 64)), dict(inputs=torch.randn(1, 3, 64, 64))]

    def extract(backbone, *args, **kwargs):
        batches = extract_features(backbone, lambda data, training: data, loader, *args, **kwargs)
        return [features for features, _ in batches]

    backbone = build_encoder(config).backbone
    several = MODELS.build(dict(config.model.backbone, out_indices=(1, 3), out_tokens=True)).eval()
    several.load_state_dict(backbone.state_dict())
    last, first = (extract(several, level) for level in (-1, 0))
    assert [tuple(batch.shape) for batch in last] == [(2, 20, 4, 4), (1, 20, 4, 4)]
    assert [tuple(batch.shape) for batch in first] == [(2, 12, 8, 8), (1, 12, 8, 8)]
    torch.testing.assert_close(last[0], backbone(loader[0]['inputs'])[0])
    torch.testing.assert_close(extract(several), last)
    torch.testing.assert_close(extract(several, pool=True)[0], last[0].mean((2, 3)))
    assert extract(nn.Flatten(), pool=True)[0].shape == (2, 3 * 64 * 64)
    with pytest.raises(ValueError, match=r'MobileFormer gives 2 feature maps.*level=2.*another level'):
        extract(several, 2)
    with pytest.raises(ValueError, match='Sequential gives 0 feature maps'):
        extract(nn.Sequential(nn.Flatten()), -1)


def test_moments_of_parts_add_up():
    features = torch.randn(30, 4, 3, 5, generator=torch.Generator().manual_seed(0)) + 2
    whole, parts = Moments(), Moments()
    whole.add(features)
    parts.add(features[:7])
    parts.add(features[7:])
    rows = features.movedim(1, -1).flatten(0, 2).double()
    for moments in (whole, parts):
        mean, covariance = moments.mean_and_covariance()
        torch.testing.assert_close(mean, rows.mean(0))
        torch.testing.assert_close(covariance, rows.mT.cov(correction=0))
