"""tools/test.py on a detector, from a shell."""

import json
import sys
from argparse import Namespace
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.coco import TINY_DETR
from helpers.models import ROOT
from helpers.probes import probe
from helpers.runs import run, write_config
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS as CLASSIFIERS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qbheat_mm.evaluation.metrics.coco_bbox import FIGURES

pytest.importorskip('mmdet')
from mmdet.registry import MODELS

BASES = ('datasets/coco_custom', 'schedules/detr_adamw_50e', 'detection_runtime')


@pytest.fixture
def project(make_coco, tmp_path):
    """Data, a config and a checkpoint whose detections are worth a little."""
    for split in ('train', 'val'):
        make_coco(split)
    bases = [f'{ROOT}/configs/_base_/{base}.py' for base in BASES]
    write_config(tmp_path, *bases, model=TINY_DETR, test_dataloader=dict(num_workers=0, persistent_workers=False))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(deepcopy(TINY_DETR)).state_dict()), tmp_path / 'detector.pth')
    return tmp_path


def run_test(project: Path, *options: str) -> dict:
    command = (sys.executable, ROOT / 'tools' / 'test.py', 'config.py', 'detector.pth', '--work-dir', 'run', *options)
    run(*command, cwd=project, DATA_ROOT=str(project))
    return json.loads((project / 'metrics.json').read_text())


@pytest.mark.slow
def test_metrics_and_detections_are_written(project):
    metrics = run_test(project, '--out', 'metrics.json')
    assert set(metrics) == {f'coco/bbox_{name}' for name in FIGURES} | {'coco/cat_precision', 'coco/dog_precision'}
    detections = json.loads((project / 'run' / 'detections.bbox.json').read_text())
    assert set(detections[0]) == {'image_id', 'bbox', 'score', 'category_id'}
    assert {detection['category_id'] for detection in detections} <= {10, 7}

    truth = COCO(str(project / 'annotations' / 'instances_val.json'))
    evaluation = COCOeval(truth, truth.loadRes(str(project / 'run' / 'detections.bbox.json')), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert [metrics[f'coco/bbox_{name}'] for name in FIGURES] == [float(value) for value in evaluation.stats]


@pytest.mark.slow
def test_the_place_of_the_detections_can_be_chosen(project):
    run_test(project, '--out', 'metrics.json', '--cfg-options', 'test_evaluator.outfile_prefix=mine/found')
    assert (project / 'mine' / 'found.bbox.json').is_file()
    assert not (project / 'run' / 'detections.bbox.json').exists()


def test_only_our_metric_without_a_place_is_given_one(load_tool):
    tool = load_tool('test.py')
    metrics = [dict(type='CocoBBoxMetric'), dict(type='CocoBBoxMetric', outfile_prefix='mine'), dict(type='Accuracy')]
    cfg = Config(dict(work_dir='run', test_evaluator=metrics))
    tool.keep_detections(cfg)
    assert [metric.get('outfile_prefix') for metric in cfg.test_evaluator] == ['run/detections', 'mine', None]
    for evaluator in (None, dict(type='CocoBBoxMetric')):
        cfg = Config(dict(work_dir='run', test_evaluator=evaluator))
        tool.keep_detections(cfg)
    assert cfg.test_evaluator.outfile_prefix == 'run/detections'


@pytest.mark.parametrize('resume', [True, False])
def test_a_config_that_resumes_is_tested_on_the_checkpoint(load_tool, resume):
    tool = load_tool('test.py')
    cfg = Config(dict(resume=resume, load_from='interrupted.pth'))
    tool.apply_args(cfg, Namespace(checkpoint='mine.pth', amp=False, show_dir=None))
    assert (cfg.load_from, cfg.resume) == ('mine.pth', False)


@pytest.mark.slow
def test_detections_are_drawn_where_they_are_told_to_and_none_over_another(project):
    ann_file = project / 'annotations' / 'instances_val.json'
    content = json.loads(ann_file.read_text())
    expected = []
    for i, image in enumerate(content['images']):
        name = f'{"ab"[i % 2]}/{i // 2}.png'
        (project / 'images' / name).parent.mkdir(exist_ok=True)
        (project / 'images' / image['file_name']).rename(project / 'images' / name)
        image['file_name'] = name
        expected.append(name)
    ann_file.write_text(json.dumps(content))
    run_test(project, '--out', 'metrics.json', '--show-dir', 'drawn')
    drawn = project / 'drawn'
    assert sorted(str(path.relative_to(drawn)) for path in drawn.rglob('*.*')) == sorted(expected)


@pytest.mark.slow
def test_classifications_are_drawn_where_they_are_told_to_and_none_over_another(probe_data):
    cfg = probe(probe_data, 'linear-noaug')
    cfg.update(test_dataloader=cfg.val_dataloader, test_evaluator=cfg.val_evaluator, test_cfg={})
    cfg.dump(probe_data / 'config.py')
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    torch.save(dict(state_dict=CLASSIFIERS.build(cfg.model).state_dict()), probe_data / 'probe.pth')
    command = (sys.executable, ROOT / 'tools' / 'test.py', 'config.py', 'probe.pth', '--work-dir', 'run')
    run(*command, '--show-dir', 'drawn', cwd=probe_data)
    images = sorted(str(path.relative_to(probe_data / 'val')) for path in (probe_data / 'val').rglob('*.jpg'))
    drawn = probe_data / 'drawn'
    assert sorted(str(path.relative_to(drawn)) for path in drawn.rglob('*.*')) == [f'{name}_0.png' for name in images]
