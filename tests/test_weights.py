"""The weights of the repository: a probe, a detector and mmpretrain load them."""

import hashlib

import mmpretrain
import numpy as np
import pytest
import torch
from helpers.models import ROOT
from mmengine.config import Config
from mmpretrain.registry import MODELS

from qbheat_mm.apis import model_index
from qbheat_mm.checkpoint import CheckpointError

(PATH,) = (ROOT / 'weights').glob('*.pth')
NAME, _, HASH = PATH.stem.rpartition('-')
CONFIGS = dict(
    probe='benchmarks/mobile-former-285m_1xb128-linear-coslr-20e_imagenette.py',
    detection='detection/conditional-detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py',
)


def test_it_is_small_complete_and_named_by_its_hash():
    assert PATH.stat().st_size < 12e6
    assert hashlib.sha256(PATH.read_bytes()).hexdigest().startswith(HASH)
    assert PATH.name in (PATH.parent / 'README.md').read_text()


@pytest.mark.parametrize('use', [*CONFIGS, 'mmpretrain'])
def test_it_is_all_of_the_backbone(use):
    if use == 'mmpretrain':
        extractor = mmpretrain.FeatureExtractor(NAME, pretrained=True)  # calls get_model
        ((features,),) = extractor(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
        assert features.shape == (160,)
        model = extractor.model
    else:
        cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[use]).model.backbone
        cfg.init_cfg.checkpoint = str(PATH)
        model = torch.nn.ModuleDict(dict(backbone=MODELS.build(dict(cfg, type='MobileFormer'))))
        model.backbone.init_weights()
    stored, loaded = torch.load(PATH, weights_only=True)['state_dict'], model.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(value, stored[key].to(value.dtype)) for key, value in loaded.items())
    with torch.inference_mode():
        features = model.backbone.eval()(torch.randn(1, 3, 128, 128))[-1]
    assert features.isfinite().all()
    assert features.std() > 0


def test_code_in_a_file_of_the_project_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(model_index, 'ROOT', tmp_path)
    torch.save(dict(state_dict=dict(x=Config())), tmp_path / 'pickled.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        model_index.load_from_project('qbheat_mm://pickled.pth')
