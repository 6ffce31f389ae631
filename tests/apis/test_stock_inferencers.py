"""mmpretrain's own inferencers with the configs of this project."""

import mmcv
import numpy as np
import pytest
import torch
from helpers.models import ROOT, write_images
from mmengine.config import Config
from mmpretrain import FeatureExtractor, ImageClassificationInferencer, ImageRetrievalInferencer
from mmpretrain.registry import MODELS


@pytest.fixture
def probe():
    """Config of a probe, on a random backbone."""
    config = Config.fromfile(f'{ROOT}/configs/benchmarks/mobile-former-52m_1xb128-linear-coslr-20e_imagenette.py')
    config.model.backbone.init_cfg = None
    return config


@pytest.fixture
def weights(probe, tmp_path):
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(probe.model).state_dict()), tmp_path / 'probe.pth')
    return str(tmp_path / 'probe.pth')


@pytest.mark.parametrize('inferencer', [ImageClassificationInferencer, FeatureExtractor])
def test_paths_and_arrays_give_the_same(inferencer, probe, weights, tmp_path):
    paths = [str(path) for path in write_images(tmp_path / 'images', 2, size=160, suffix='.png')]
    infer = inferencer(probe, pretrained=weights, device='cpu')
    from_paths, from_arrays = infer(paths), infer([mmcv.imread(path) for path in paths])
    for one, other in zip(from_paths, from_arrays, strict=True):
        one, other = (each['pred_scores'] if isinstance(each, dict) else each[-1].numpy() for each in (one, other))
        assert np.array_equal(one, other)
    assert not np.array_equal(
        *(each['pred_scores'] if isinstance(each, dict) else each[-1].numpy() for each in from_paths)
    )


def test_an_image_is_retrieved_by_itself(probe, tmp_path):
    paths = [str(path) for path in write_images(tmp_path / 'images', 3, size=160, suffix='.png')]
    probe.model = dict(
        type='ImageToImageRetriever',
        image_encoder=[probe.model.backbone, dict(type='GlobalAveragePooling')],
        prototype='',  # the inferencer sets it
        data_preprocessor=probe.model.data_preprocessor,
    )
    infer = ImageRetrievalInferencer(probe, prototype=paths, pretrained=False, device='cpu')
    for i, path in enumerate(paths):
        assert infer(path, topk=1)[0][0]['sample_idx'] == i
