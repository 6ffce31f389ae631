import copy
import json
import random

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from PIL import Image

from qbheat_mm.datasets.coco_validation import Report, check_coco
from qbheat_mm.datasets.config_validation import check_config


def problems(report: Report) -> dict[str, list[str]]:
    return dict(errors=report.errors, warnings=report.warnings, notes=report.notes)


def test_a_sound_data_set_gives_no_word(make_coco):
    ann_file, img_dir, _ = make_coco()
    assert check_coco(ann_file, img_dir, ('cat', 'dog')) == Report()
    assert str(check_coco(ann_file, img_dir)) == 'nothing found'


def drop_field(section, name):
    return lambda content: content[section][0].pop(name)


def set_field(section, name, value, index=0):
    return lambda content: content[section][index].__setitem__(name, value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (drop_field('annotations', 'area'), '1 of 8 annotations have no usable field "area": number 0'),
        (drop_field('annotations', 'iscrowd'), 'annotations have no usable field "iscrowd"'),
        (drop_field('images', 'width'), 'images have no usable field "width"'),
        (set_field('images', 'height', 0), 'not positive: train_0.png'),
        (set_field('annotations', 'bbox', [1, 2, float('nan'), 4]), 'no bbox of x, y, width, height'),
        (set_field('annotations', 'image_id', [100]), 'no usable field "image_id": number 0'),
        (set_field('images', 'file_name', None), 'no usable field "file_name": number 0'),
        (lambda content: content['annotations'].append('text'), '1 of 9 annotations have no usable field "id"'),
        (set_field('annotations', 'bbox', [1, 2, '3', 4]), 'no bbox of x, y, width, height'),
        (set_field('annotations', 'bbox', [30, 20, -10, 4]), 'annotation 1'),
        (set_field('annotations', 'bbox', [1, 2, 3]), 'annotation 1'),
        (set_field('annotations', 'bbox', [96, 5, 10, 10]), '1 of 8 boxes, in train_0.png, lie outside'),
        (set_field('annotations', 'bbox', [5, 5, 10, 0]), '1 of 8 boxes, in train_0.png, are empty'),
        (set_field('annotations', 'bbox', [60, 30, 80, 60]), '1 of 8 boxes, in train_0.png, stick out'),
        (set_field('annotations', 'id', 2), '1 ids of annotations repeat: 2'),
        (set_field('images', 'id', 101), '1 ids of images repeat: 101'),
        (set_field('categories', 'id', 7), '1 ids of categories repeat: 7'),
        (set_field('categories', 'name', 'dog'), 'category names repeat: dog'),
        (set_field('annotations', 'image_id', 7), '1 annotations name an unknown image_id: 7 (annotation 1)'),
        (set_field('annotations', 'category_id', 99), 'unknown category_id: 99 (annotation 1)'),
        (set_field('images', 'file_name', 'lost.png'), '1 of 4 images are not in'),
        (set_field('images', 'width', 95), 'train_0.png is 96 x 64, not 95 x 64'),
        (lambda content: content['annotations'].clear(), 'no annotation to train on'),
        (lambda content: [a.update(iscrowd=1) for a in content['annotations']], 'no annotation to train on'),
        (lambda content: content['images'].clear(), 'lists no image'),
        (lambda content: content.pop('categories'), 'no list "categories"'),
    ],
)
def test_errors_name_what_is_wrong(make_coco, change, message):
    ann_file, img_dir, content = make_coco()
    change(content)
    ann_file.write_text(json.dumps(content))
    report = check_coco(ann_file, img_dir)
    assert any(message in error for error in report.errors), report


@pytest.mark.parametrize(
    ('classes', 'level', 'message'),
    [
        (('cat', 'bird'), 'errors', "1 of 2 classes of the config are no categories of the file: 'bird'"),
        (('cat',), 'warnings', "1 of 2 categories of the file are not in the config, their boxes are left out: 'dog'"),
        (('dog', 'cat'), 'errors', "write 'cat', 'dog'"),
        (('cat', 'dog', 'cat'), 'errors', 'cat more than once'),
        ('cat', 'errors', "('cat',)"),
    ],
)
def test_classes_that_do_not_match(make_coco, classes, level, message):
    ann_file, img_dir, _ = make_coco()
    report = check_coco(ann_file, img_dir, classes)
    found = problems(report).pop(level)
    assert any(message in text for text in found), report
    assert bool(report.errors) == (level == 'errors')


def test_a_file_that_is_not_there_or_broken(make_coco, tmp_path):
    ann_file, img_dir, _ = make_coco()
    assert 'DATA_ROOT' in check_coco(tmp_path / 'lost.json', img_dir).errors[0]
    ann_file.write_text('{"images": [,]}')
    assert 'line 1 column 13' in check_coco(ann_file, img_dir).errors[0]
    ann_file.write_text('[]')
    assert 'no list "images"' in check_coco(ann_file, img_dir).errors[0]


def test_what_large_sets_hold_does_not_stop(make_coco):
    """A rare empty box, images without boxes, crowds, boxes a hair outside, gaps between ids."""
    ann_file, img_dir, content = make_coco(num_images=60)
    annotations = content['annotations']
    annotations[0]['bbox'] = [5, 5, 10, 0]
    annotations[2]['bbox'] = [40, 20, 96.4 - 40, 64.3 - 20]
    annotations[4]['bbox'] = [40, 20, 60, 30]  # four pixels outside
    annotations[6]['iscrowd'] = 1
    annotations[8]['bbox'] = [40, 20, 1, 5]
    del annotations[10:12]
    ann_file.write_text(json.dumps(content))
    report = check_coco(ann_file, img_dir, ('cat', 'dog'))
    assert report.errors == []
    assert [text for text in report.warnings if 'train_0.png, are empty' in text]
    assert [text for text in report.warnings if '1 of 118 boxes, in train_2.png, stick out' in text]
    notes = '\n'.join(report.notes)
    for note in ('train_4.png, are one pixel', 'train_3.png, are crowds', '1 of 60 images have no boxes: train_5.png'):
        assert note in notes


def test_a_class_that_never_occurs_is_noted(make_coco):
    ann_file, img_dir, content = make_coco()
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] == 10]
    ann_file.write_text(json.dumps(content))
    report = check_coco(ann_file, img_dir)
    assert report == Report(notes=["1 of 2 classes never occur: 'dog'"])
    # boxes of a class that is not asked for do not count
    assert 'no annotation' in check_coco(ann_file, img_dir, ('dog',)).errors[0]


def test_images_that_are_odd(make_coco):
    ann_file, img_dir, _ = make_coco(num_images=6)
    pixels = np.zeros((64, 96), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(img_dir / 'train_0.png')
    Image.fromarray(pixels).convert('RGBA').save(img_dir / 'train_1.png')
    (img_dir / 'train_2.png').write_bytes((img_dir / 'train_3.png').read_bytes()[:-2000])
    Image.fromarray(pixels).convert('RGB').save(img_dir / 'train_4.png', exif=exif)
    (img_dir / 'train_5.png').write_bytes(b'')
    report = check_coco(ann_file, img_dir)
    errors, warnings = '\n'.join(report.errors), '\n'.join(report.warnings)
    assert '2 of 6 images looked at cannot be read' in errors
    assert 'train_2.png (' in errors
    assert 'train_5.png (' in errors
    assert 'train_4.png is 64 x 96, turned as its EXIF orientation 6 says, not 96 x 64' in errors
    assert 'are gray; the channel is repeated: train_0.png' in warnings
    assert 'four channels; they are turned into three: train_1.png' in warnings
    assert 'train_3' not in errors + warnings
    assert check_coco(ann_file, img_dir, sample=0) == Report()


def test_id_zero_and_a_image_listed_twice_are_warned_of(make_coco):
    ann_file, img_dir, content = make_coco()
    content['annotations'][0]['id'] = 0
    content['images'][1]['file_name'] = 'train_0.png'
    ann_file.write_text(json.dumps(content))
    report = check_coco(ann_file, img_dir)
    assert report.errors == []
    assert 'id 0' in report.warnings[0]
    assert 'more than once: train_0.png' in report.warnings[1]


def detection_config(root, classes=('cat', 'dog'), scale=(96, 64)) -> ConfigDict:
    """The parts of a detection config that the check reads, with a val loader that wraps its dataset."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='PackDetInputs'),
    ]

    def dataset(name):
        return dict(
            type='CocoDataset',
            data_root=str(root),
            ann_file=f'annotations/instances_{name}.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=classes),
            pipeline=pipeline,
        )

    val = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset('val')))
    evaluator = dict(type='CocoMetric', ann_file=f'{root}/annotations/instances_val.json')
    return ConfigDict(
        default_scope='mmdet',
        model=dict(type='DETR', bbox_head=dict(type='DETRHead', num_classes=len(classes))),
        train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dataset('train'), dataset('more')])),
        val_dataloader=val,
        val_evaluator=[evaluator],
        test_dataloader=copy.deepcopy(val),
        test_evaluator=[evaluator],
    )


@pytest.fixture
def config(make_coco, tmp_path):
    for name in ('train', 'more', 'val'):
        make_coco(name)
    return detection_config(tmp_path)


def test_config_is_checked_inside_wrappers(config, tmp_path):
    assert check_config(config) == Report()
    (tmp_path / 'images' / 'more_1.png').unlink()
    (tmp_path / 'annotations' / 'instances_val.json').unlink()
    report = check_config(config)
    assert len(report.errors) == 2  # test is val, reported once
    assert report.errors[0].startswith('train: ')
    assert 'more_1.png' in report.errors[0]
    assert report.errors[1].startswith('val: ')
    assert check_config(config, splits=['val']).errors == report.errors[1:]


def test_config_whose_parts_disagree(config):
    config.model.bbox_head.num_classes = 80
    config.val_evaluator[0].ann_file = 'other.json'
    errors = check_config(config).errors
    assert sum('num_classes is 80, the dataset has 2 classes' in error for error in errors) == 4
    assert 'val: the evaluator reads "other.json"' in '\n'.join(errors)

    config.model.bbox_head.num_classes = 2
    config.train_dataloader.dataset.datasets[0].metainfo.classes = ['cat']
    assert 'the datasets have different classes' in check_config(config).errors[-1]


def test_config_without_class_names_means_coco_and_is_told(config):
    del config.val_dataloader.dataset.dataset['metainfo']
    assert any('80 of 80' in e or '78 of 80' in e for e in check_config(config, splits=['val']).errors)


def test_config_with_the_classic_slip(config):
    config.train_dataloader.dataset.datasets[0].metainfo.classes = 'person'
    assert any("('person',)" in error for error in check_config(config, splits=['train']).errors)


def test_config_without_coco_data(config):
    config.train_dataloader = None
    assert check_config(config, splits=['train']).warnings == ['no COCO dataset in train_dataloader']


def test_the_check_leaves_random_numbers_alone(config):
    """Training draws the same with it and without."""
    drawn = []
    for checked in (True, False):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if checked:
            check_config(config)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]
