import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco import coco_content
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import qbheat_mm.evaluation  # noqa: F401

mmdet_structures = pytest.importorskip('mmdet.structures')
from mmdet.datasets import CocoDataset  # noqa: E402

MIM = Path(mmdet_structures.__file__).parents[1] / '.mim'

FIGURES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@1', 'AR@10', 'AR@100', 'AR_s', 'AR_m', 'AR_l']


def sample(image: dict, boxes, scores, labels):
    """A data sample as a detector returns it; boxes x, y, w, h."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    result = mmdet_structures.DetDataSample(
        metainfo=dict(img_id=image['id'], ori_shape=(image['height'], image['width']))
    )
    result.pred_instances = InstanceData(
        bboxes=boxes, scores=torch.tensor(scores, dtype=torch.float32), labels=torch.tensor(labels, dtype=torch.long)
    )
    return result


def truth_of(content: dict, image: dict) -> tuple[list, list]:
    """Boxes and labels; a label is the place of its category in the file."""
    order = [category['id'] for category in content['categories']]
    mine = [a for a in content['annotations'] if a['image_id'] == image['id']]
    return [a['bbox'] for a in mine], [order.index(a['category_id']) for a in mine]


def noisy(content: dict, boxes_per_image: int) -> list:
    """Truth with shaken boxes among random ones."""
    generator = np.random.default_rng(1)
    samples = []
    for image in content['images']:
        boxes, labels = truth_of(content, image)
        boxes = np.array(boxes).reshape(-1, 4) + generator.normal(0, 1.5, (len(boxes), 4))
        others = generator.uniform(0, 50, (boxes_per_image - len(boxes), 4))
        labels = [*labels, *generator.integers(0, len(content['categories']), len(others)).tolist()]
        scores = generator.uniform(0, 1, boxes_per_image)
        scores[: len(boxes)] += np.where(generator.uniform(0, 1, len(boxes)) < 0.7, 1, 0)
        samples.append(sample(image, np.concatenate([boxes, others]), scores, labels))
    return samples


def evaluate(ann_file, content, samples, classes=None, **options) -> dict[str, float]:
    classes = classes or tuple(category['name'] for category in content['categories'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        evaluator = Evaluator([dict(type='CocoBBoxMetric', ann_file=str(ann_file), **options)])
    evaluator.dataset_meta = dict(classes=classes)
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def direct(ann_file, predictions, cat_ids=None) -> list[float]:
    truth = COCO(str(ann_file))
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), 'bbox')
    if cat_ids:
        evaluation.params.catIds = cat_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.fixture
def coco(make_coco):
    ann_file, _, content = make_coco(num_images=12, size=(160, 128), classes=('cat', 'dog', 'bird'))
    content['annotations'][0]['iscrowd'] = 1
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 111]  # an image without boxes
    ann_file.write_text(json.dumps(content))
    return ann_file, content


@pytest.mark.parametrize('boxes_per_image', [20, 150])  # COCO counts an image's best 100
def test_equals_pycocotools(coco, tmp_path, boxes_per_image):
    ann_file, content = coco
    figures = evaluate(ann_file, content, noisy(content, boxes_per_image), outfile_prefix=str(tmp_path / 'out' / 'run'))
    exported = tmp_path / 'out' / 'run.bbox.json'
    expected = direct(ann_file, exported)
    assert [figures[f'coco/bbox_{name}'] for name in FIGURES] == pytest.approx(expected, abs=1e-14)
    assert 0.05 < expected[0] < 0.95  # not one of the trivial cases
    for category in content['categories']:
        alone = direct(ann_file, exported, [category['id']])[0]
        assert figures[f'coco/{category["name"]}_precision'] == pytest.approx(alone, abs=1e-14)
    assert len({figures[f'coco/{name}_precision'] for name in ('cat', 'dog', 'bird')}) == 3


@pytest.mark.slow
def test_predictions_of_a_stock_resnet_50_equal_pycocotools(tmp_path):
    """Random weights; the truth is a part of what the detector predicts, shaken."""
    apis, generator = pytest.importorskip('mmdet.apis'), np.random.default_rng(0)
    cfg = Config.fromfile(f'{MIM}/configs/retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.test_cfg.score_thr = 0
    cfg.test_dataloader.dataset.pipeline[1].scale = (256, 256)
    torch.manual_seed(0)
    samples = apis.inference_detector(
        apis.init_detector(cfg, device='cpu'), list(generator.integers(0, 256, (4, 256, 256, 3), dtype=np.uint8))
    )
    boxes = {}
    for number, one in enumerate(samples, start=1):
        one.set_metainfo(dict(img_id=number))
        found = one.pred_instances[::3]
        corners = found.bboxes.numpy() + generator.normal(0, 4, (len(found), 4))
        sizes = np.maximum(corners[:, 2:] - corners[:, :2], 1)
        boxes[f'{number}.jpg'] = [
            (label + 1, box, 0)
            for label, box in zip(found.labels.tolist(), np.hstack([corners[:, :2], sizes]).tolist())
        ]
    classes = dict(enumerate(CocoDataset.METAINFO['classes'], start=1))
    ann_file = tmp_path / 'truth.json'
    ann_file.write_text(json.dumps(coco_content(boxes, (256, 256), classes)))
    figures = evaluate(ann_file, None, samples, classes=tuple(classes.values()), outfile_prefix=str(tmp_path / 'run'))
    expected = direct(ann_file, tmp_path / 'run.bbox.json')
    assert [figures[f'coco/bbox_{name}'] for name in FIGURES] == pytest.approx(expected, abs=1e-14)
    assert 0.05 < expected[0] < 0.95


def test_a_choice_of_classes(coco, tmp_path):
    ann_file, content = coco
    chosen = dict(content, categories=[content['categories'][0], content['categories'][2]])
    chosen['annotations'] = [a for a in content['annotations'] if a['category_id'] != content['categories'][1]['id']]
    prefix = tmp_path / 'run'
    figures = evaluate(ann_file, content, noisy(chosen, 20), classes=('cat', 'bird'), outfile_prefix=str(prefix))
    ids = [category['id'] for category in chosen['categories']]
    assert {entry['category_id'] for entry in json.loads((tmp_path / 'run.bbox.json').read_text())} == set(ids)
    expected = direct(ann_file, f'{prefix}.bbox.json', ids)
    assert [figures[f'coco/bbox_{name}'] for name in FIGURES] == pytest.approx(expected, abs=1e-14)
    assert set(figures) == {f'coco/bbox_{name}' for name in FIGURES} | {'coco/cat_precision', 'coco/bird_precision'}


def test_perfect_predictions(coco):
    ann_file, content = coco
    samples = []
    for image in content['images']:
        boxes, labels = truth_of(content, image)
        samples.append(sample(image, boxes, [0.9] * len(boxes), labels))
    figures = evaluate(ann_file, content, samples)
    assert figures['coco/bbox_mAP'] == figures['coco/bbox_AR@100'] == figures['coco/cat_precision'] == 1.0
    assert figures['coco/bbox_mAP_l'] == -1  # no large box in images of 160 x 128


def test_no_predictions(coco, tmp_path):
    ann_file, content = coco
    samples = [sample(image, [], [], []) for image in content['images']]
    figures = evaluate(ann_file, content, samples, outfile_prefix=str(tmp_path / 'run'))
    assert json.loads((tmp_path / 'run.bbox.json').read_text()) == []
    assert len(figures) == 15
    assert {value for key, value in figures.items() if not key.endswith('_l')} == {0.0}


def test_format_only(coco, tmp_path):
    ann_file, content = coco
    samples = noisy(content, 5)
    assert evaluate(ann_file, content, samples, outfile_prefix=str(tmp_path / 'run'), format_only=True) == {}
    entry = json.loads((tmp_path / 'run.bbox.json').read_text())[0]
    assert set(entry) == {'image_id', 'bbox', 'score', 'category_id'}
    x1, y1, x2, y2 = samples[0].pred_instances.bboxes[0].tolist()
    assert entry['bbox'] == [x1, y1, x2 - x1, y2 - y1]
