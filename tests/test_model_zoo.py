"""Detectors of MMDetection's model zoo on Mobile-Former, with mmcv's compiled ops or without."""

from __future__ import annotations

import pytest
import torch
import yaml
from helpers.models import ROOT
from mmengine.registry import DefaultScope, init_default_scope
from torchvision.ops import batched_nms

from qbheat_mm import compat

pytest.importorskip('mmdet')
from helpers import model_zoo

LIST = yaml.safe_load((ROOT / 'tests' / 'data' / 'model_zoo.yml').read_text())
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))]


@pytest.fixture(autouse=True)
def _mmdet_scope(_mmpretrain_scope):
    DefaultScope._instance_dict.clear()
    init_default_scope('mmdet')


FAST = ('centernet', 'condinst', 'conditional_detr', 'dyhead', 'retinanet', 'rtmdet')  # seconds together


def family(config: str) -> str:
    return config.split('/')[1]


@pytest.mark.parametrize(
    'config', [pytest.param(each, marks=() if family(each) in FAST else pytest.mark.slow) for each in LIST['run']]
)
def test_a_training_step_and_a_prediction(config):
    model_zoo.step_and_predict(config)


@pytest.mark.slow
@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled ops are there')
@pytest.mark.parametrize('op', LIST['lack'])
def test_a_missing_op_is_named(op):
    with pytest.raises(RuntimeError, match=f'"{op}" needs the compiled ops of mmcv') as error:
        model_zoo.step_and_predict(LIST['lack'][op][0])
    assert compat.how_to_build_ops() in str(error.value)


@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled ops are there')
@pytest.mark.parametrize(('op', 'module'), [('carafe_forward', 'neck.'), ('masked_im2col_forward', 'rpn_head')])
def test_a_missing_op_is_warned_of_when_the_model_is_built(op, module, monkeypatch):
    said = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda text, **kwargs: said.append(text))
    compat.warn_of_missing_ops(model_zoo.build(LIST['lack'][op][0]))
    (text,) = (text for text in said if 'needs the compiled ops' in text)
    assert text.startswith(module)
    assert f'the op "{op}", which needs the compiled ops of mmcv' in text
    assert text.endswith(f'Remedy: {compat.how_to_build_ops()}.')


@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled ops are there')
@pytest.mark.parametrize('config', LIST['run'])
def test_a_detector_that_lacks_no_op_is_not_warned_of(config):
    assert compat.missing_ops(model_zoo.build(config)) == {}


@pytest.mark.parametrize(
    ('version', 'command'),
    [
        ('2.1.0', '"setuptools<81" && pip install --no-build-isolation mmcv==2.1.0`'),
        ('2.3.6', '--no-build-isolation --no-binary onedl-mmcv onedl-mmcv==2.3.6`'),
    ],
)
def test_the_remedy_is_of_the_family_in_use(monkeypatch, version, command):
    monkeypatch.setattr('mmcv.__version__', version)
    assert command in compat.how_to_build_ops()


@pytest.mark.slow
def test_the_list_of_configs_that_lack_an_op_is_complete():
    assert model_zoo.lacking(config for family in model_zoo.index().values() for config in family) == LIST['lack']


def test_every_family_runs_or_is_listed_with_the_reason():
    lacking = {family(config) for configs in LIST['lack'].values() for config in configs}
    run = [family(config) for config in LIST['run']]
    assert len(run) == len(set(run))
    assert set(run).isdisjoint(LIST['other'])
    assert {name for name, configs in model_zoo.index().items() if configs} == {*run, *lacking, *LIST['other']}


@pytest.mark.parametrize('device', DEVICES)
def test_faster_rcnn_learns_and_predicts(device):
    """RoIAlign and NMS, forward and backward."""
    torch.manual_seed(0)
    model = model_zoo.build('configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    model.init_weights()
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(6):
        torch.manual_seed(1)
        values = model(**model.data_preprocessor(model_zoo.batch(), training=True), mode='loss')
        loss, _ = model.parse_losses(values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(model_zoo.batch()), mode='predict')
    for result in results:
        found = result.pred_instances
        assert found.bboxes.isfinite().all()
        kept = batched_nms(found.bboxes, found.scores, found.labels, iou_threshold=0.5)
        assert len(kept) == len(found)  # no box of a class covers another of it
