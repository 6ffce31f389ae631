"""The backbone that comes with the project."""

import hashlib

import pytest
import torch
from helpers.models import ROOT
from mmengine.config import Config
from mmpretrain.registry import MODELS

FILES = sorted((ROOT / 'weights').glob('*.pth'))


def test_there_is_one():
    assert FILES


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_it_is_small_whole_and_named_by_its_hash(path):
    assert path.stat().st_size < 12e6
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.split('-')[-1])
    assert path.name in (path.parent / 'README.md').read_text()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_it_is_the_backbone_of_probe_and_detection(path):
    stored = torch.load(path, weights_only=True)['state_dict']
    for config in (
        'benchmarks/mobile-former-285m_1xb128-linear-coslr-20e_imagenette.py',
        'detection/conditional-detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py',
    ):
        cfg = Config.fromfile(ROOT / 'configs' / config).model.backbone
        cfg.init_cfg.checkpoint = str(path)
        backbone = MODELS.build(dict(cfg, type='MobileFormer'))
        backbone.init_weights()
        loaded = backbone.state_dict()
        assert {f'backbone.{key}' for key in loaded} == set(stored)
        assert all(torch.equal(value, stored[f'backbone.{key}'].to(value.dtype)) for key, value in loaded.items())
    with torch.inference_mode():
        features = backbone.eval()(torch.randn(1, 3, 128, 128))[-1]
    assert features.isfinite().all()
    assert features.std() > 0
