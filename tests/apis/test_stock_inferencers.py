"""mmpretrain's and mmdet's own inferencers with the configs of this project."""

import mmcv
import numpy as np
import pytest
import torch
from helpers.models import ROOT, write_images
from mmengine.config import Config
from mmengine.registry import DefaultScope
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


# Both give boxes with random weights: no threshold on the score, or one below its first value.
DETECTORS = [
    'rtmdet-tiny_mobile-former-285m-frozen_8xb32-300e_coco',
    pytest.param('detr_mobile-former-285m-frozen_8xb2-150e_coco', marks=pytest.mark.slow),  # images of 800 px
]


@pytest.mark.parametrize('name', DETECTORS)
def test_mmdets_inferencer_and_functions_give_the_same_boxes(name, tmp_path, monkeypatch):
    apis = pytest.importorskip('mmdet.apis')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))  # inference needs no data set
    config, weights = str(ROOT / 'configs' / 'detection' / f'{name}.py'), str(tmp_path / 'detector.pth')
    model = Config.fromfile(config).model
    model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(model).state_dict()), weights)
    paths = [str(path) for path in write_images(tmp_path / 'images', 2, size=160, suffix='.png')]

    inferencer = apis.DetInferencer(config, weights, device='cpu', show_progress=False)
    from_paths = inferencer(paths, return_datasamples=True, out_dir=str(tmp_path / 'out'))['predictions']
    from_arrays = inferencer([mmcv.imread(path) for path in paths], return_datasamples=True)['predictions']
    detector = apis.init_detector(config, weights, device='cpu')
    for one, two, three in zip(from_paths, from_arrays, apis.inference_detector(detector, paths), strict=True):
        boxes = one.pred_instances.bboxes
        assert len(boxes) > 50
        for other in (two, three):
            assert torch.equal(other.pred_instances.bboxes, boxes)
            assert torch.equal(other.pred_instances.labels, one.pred_instances.labels)
        assert boxes.min() >= 0
        assert boxes.max() <= 160
    assert sorted(path.name for path in (tmp_path / 'out' / 'vis').iterdir()) == sorted(
        path.rsplit('/', 1)[-1] for path in paths
    )
    assert detector.dataset_meta['classes'][0] == 'person'
