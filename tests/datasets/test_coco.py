import json
import sys
from pathlib import Path

import pytest
from helpers.coco import TINY_DETR
from helpers.models import ROOT
from helpers.runs import run
from mmengine.config import Config
from mmengine.runner import Runner

from qbheat_mm.datasets.coco import AnnotationError, read_classes
from qbheat_mm.datasets.coco_validation import Report
from qbheat_mm.datasets.config_validation import check_config

MODEL = f"""
_base_ = ['{ROOT}/configs/_base_/datasets/coco_custom.py']
model = dict(type='DETR', bbox_head=dict(type='DETRHead', num_classes=_base_.num_classes))
"""


def test_classes_come_in_the_order_of_the_file(make_coco):
    ann_file, _, content = make_coco(classes=('dog', 'traffic light', 'cat'))
    assert read_classes(ann_file) == ('dog', 'traffic light', 'cat')
    assert read_classes(ann_file, only='cat, dog') == ('dog', 'cat')
    assert read_classes(ann_file, only=['traffic light']) == ('traffic light',)
    with pytest.raises(AnnotationError, match=r"no category 'bird'\. It has: dog, traffic light, cat"):
        read_classes(ann_file, only='bird,cat')
    content['categories'] = {}
    ann_file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match='no list "categories"'):
        read_classes(ann_file)


@pytest.fixture
def child(make_coco, tmp_path, monkeypatch):
    """A config two steps above the base, on data that DATA_ROOT names."""
    for name in ('train', 'val'):
        make_coco(name, classes=('dog', 'cat', 'bird'))
    (tmp_path / 'parent.py').write_text(MODEL)
    (tmp_path / 'child.py').write_text("_base_ = './parent.py'\ntrain_dataloader = dict(batch_size=3)\n")
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    return tmp_path / 'child.py'


def assert_follows(cfg: Config, root: Path, classes: tuple) -> None:
    assert tuple(cfg.classes) == classes
    assert cfg.model.bbox_head.num_classes == len(classes)
    for name in ('train', 'val', 'test'):
        dataset = cfg[f'{name}_dataloader'].dataset
        assert tuple(dataset.metainfo.classes) == classes
        assert Path(dataset.ann_file).parent == root / 'annotations'
    assert Path(cfg.val_evaluator.ann_file) == Path(cfg.test_evaluator.ann_file) == Path(dataset.ann_file)


def test_everything_follows_from_the_annotation_file(child, tmp_path, monkeypatch):
    cfg = Config.fromfile(child)
    assert cfg.train_dataloader.batch_size == 3
    assert_follows(cfg, tmp_path, ('dog', 'cat', 'bird'))
    assert check_config(cfg) == Report()

    # a dumped config stands alone: no data, no environment, nothing imported
    cfg.dump(tmp_path / 'dumped.py')
    monkeypatch.delenv('DATA_ROOT')
    for path in (tmp_path / 'annotations').iterdir():
        path.unlink()
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.to_dict() == cfg.to_dict()
    assert 'read_classes' not in cfg.pretty_text


def test_a_choice_of_classes_reaches_everything(child, tmp_path, monkeypatch):
    monkeypatch.setenv('CLASSES', 'bird,dog')
    cfg = Config.fromfile(child)
    assert_follows(cfg, tmp_path, ('dog', 'bird'))
    report = check_config(cfg)
    assert report.errors == []
    assert "left out: 'cat'" in report.warnings[0]


def test_data_that_is_not_there_is_named(child, tmp_path, monkeypatch):
    monkeypatch.setenv('DATA_ROOT', str(tmp_path / 'elsewhere'))
    with pytest.raises(AnnotationError, match=r'elsewhere/annotations/instances_train\.json.*DATA_ROOT'):
        Config.fromfile(child)


@pytest.mark.slow
def test_mmdets_own_way_of_reading_configs_works_too(child):
    """In a fresh process, where nothing imported this package before the config does."""
    code = f'from mmengine.config import Config; print(Config.fromfile({str(child)!r}).model.bbox_head.num_classes)'
    assert run(sys.executable, '-c', code).split()[-1] == '3'


def test_a_detector_trains_and_is_evaluated_on_it(child, tmp_path):
    """One epoch, with the dataset check before and COCO AP after it, by which the best checkpoint is kept."""
    cfg = Config.fromfile(child)
    cfg.merge_from_dict(
        dict(
            default_scope='mmdet',
            model=dict(TINY_DETR, bbox_head=dict(TINY_DETR['bbox_head'], num_classes=cfg.num_classes)),
            work_dir=str(tmp_path / 'work'),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            val_cfg={},
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)),
            default_hooks=dict(
                dataset_check=dict(type='DatasetCheckHook'),
                checkpoint=dict(type='CheckpointHook', save_best='coco/bbox_mAP'),
            ),
            val_evaluator=dict(outfile_prefix=str(tmp_path / 'found')),
            experiment_name=tmp_path.name,
            test_dataloader=None,
            test_evaluator=None,
        )
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (96, 64)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert (tmp_path / 'found.bbox.json').is_file()
    assert list((tmp_path / 'work').glob('best_coco_bbox_mAP_epoch_1.pth'))
    assert runner.message_hub.get_scalar('val/coco/bird_precision').current() >= 0


WITHOUT_MMDET = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split('.')[0] == 'mmdet' else find_spec(name, *args)
sys.modules['mmdet'] = None
import qbheat_mm, qbheat_mm.evaluation, qbheat_mm.datasets.config_validation
print('imported')
"""


@pytest.mark.slow
def test_import_without_mmdet():
    """Pre-training and probing do without mmdet; what needs it is left out."""
    assert run(sys.executable, '-c', WITHOUT_MMDET).split()[-1] == 'imported'
