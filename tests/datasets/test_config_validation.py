import copy

import pytest
from helpers.coco import coco_dataset
from mmengine.config import ConfigDict

from qbheat_mm.datasets.coco_validation import Report
from qbheat_mm.datasets.config_validation import check_config


@pytest.fixture
def config(make_coco, tmp_path) -> ConfigDict:
    """The parts of a detection config that the check reads, with wrapped datasets."""
    for name in ('train', 'more', 'val'):
        make_coco(name)
    val = dict(dataset=dict(type='RepeatDataset', times=2, dataset=coco_dataset(tmp_path, 'val')))
    evaluator = dict(type='CocoMetric', ann_file=f'{tmp_path}/annotations/instances_val.json')
    datasets = [coco_dataset(tmp_path, 'train'), coco_dataset(tmp_path, 'more')]
    return ConfigDict(
        default_scope='mmdet',
        model=dict(type='DETR', bbox_head=dict(type='DETRHead', num_classes=2)),
        train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=datasets)),
        val_dataloader=val,
        val_evaluator=[evaluator],
        test_dataloader=copy.deepcopy(val),
        test_evaluator=[evaluator],
    )


def test_datasets_are_checked_inside_wrappers(config, tmp_path):
    assert check_config(config) == Report()
    (tmp_path / 'images' / 'more_1.png').unlink()
    (tmp_path / 'annotations' / 'instances_val.json').unlink()
    report = check_config(config)
    assert len(report.errors) == 2  # test is val, reported once
    assert report.errors[0].startswith('train: ')
    assert 'more_1.png' in report.errors[0]
    assert report.errors[1].startswith('val: ')
    assert check_config(config, splits=['val']).errors == report.errors[1:]


def test_parts_that_disagree(config):
    config.model.bbox_head.num_classes = 80
    config.val_evaluator[0].ann_file = 'other.json'
    errors = check_config(config).errors
    assert sum('num_classes is 80, the dataset has 2 classes' in error for error in errors) == 4
    assert 'val: the evaluator reads "other.json"' in '\n'.join(errors)

    config.model.bbox_head.num_classes = 2
    config.train_dataloader.dataset.datasets[0].metainfo.classes = ['cat']
    assert 'the datasets have different classes' in check_config(config).errors[-1]


def test_no_class_names_mean_those_of_coco_and_are_reported(config):
    del config.val_dataloader.dataset.dataset['metainfo']
    assert any('78 of 80' in error for error in check_config(config, splits=['val']).errors)


def test_a_string_as_classes_is_reported(config):
    config.train_dataloader.dataset.datasets[0].metainfo.classes = 'person'
    assert any("('person',)" in error for error in check_config(config, splits=['train']).errors)


def test_no_coco_dataset(config):
    config.train_dataloader = None
    assert check_config(config, splits=['train']).warnings == ['no COCO dataset in train_dataloader']


def test_images_mixed_from_several_are_checked(config):
    """Mosaic reads its images through a wrapper of mmdet's, with DINO as with others."""
    config.model.type = 'DINO'
    mosaic = dict(type='Mosaic', img_scale=(64, 64))
    config.train_dataloader.dataset = dict(
        type='MultiImageMixDataset', dataset=config.train_dataloader.dataset, pipeline=[mosaic]
    )
    assert check_config(config) == Report()
