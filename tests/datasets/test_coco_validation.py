import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from qbheat_mm.datasets.coco_validation import Report, check_coco


@pytest.fixture
def check(make_coco):
    """Change the content of a sound file and check it."""

    def check(change=lambda content: None, classes=None, **kwargs) -> Report:
        ann_file, img_dir, content = make_coco(**kwargs)
        change(content)
        ann_file.write_text(json.dumps(content))
        return check_coco(ann_file, img_dir, classes)

    return check


def test_sound_data_give_no_findings(check):
    assert check(classes=('cat', 'dog')) == Report()
    assert str(check()) == 'nothing found'


def test_the_check_leaves_random_numbers_alone(check):
    """Training is the same with and without it."""
    drawn = []
    for checked in (True, False):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if checked:
            check()
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]


def drop_field(section, name):
    return lambda content: content[section][0].pop(name)


def set_field(section, name, value, index=0):
    return lambda content: content[section][index].__setitem__(name, value)


def set_box(*box):
    return set_field('annotations', 'bbox', list(box))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (drop_field('annotations', 'area'), '1 of 8 annotations have no usable field "area", at index: 0'),
        (drop_field('annotations', 'iscrowd'), 'annotations have no usable field "iscrowd"'),
        (drop_field('images', 'width'), 'images have no usable field "width"'),
        (set_field('images', 'height', 0), 'not positive: train_0.png'),
        (set_box(1, 2, float('nan'), 4), 'no bbox of x, y, width, height'),
        (set_field('annotations', 'image_id', [100]), 'no usable field "image_id", at index: 0'),
        (set_field('images', 'file_name', None), 'no usable field "file_name", at index: 0'),
        (lambda content: content['annotations'].append('text'), '1 of 9 annotations have no usable field "id"'),
        (set_box(1, 2, '3', 4), 'no bbox of x, y, width, height'),
        (set_box(30, 20, -10, 4), 'ids: 1'),
        (set_box(1, 2, 3), 'ids: 1'),
        (set_box(96, 5, 10, 10), '1 of 8 boxes lie outside their image (they must be in its pixels): train_0'),
        (set_box(5, 5, 10, 0), '1 of 8 boxes are empty or thinner than a pixel'),
        (set_box(60, 30, 80, 60), '1 of 8 boxes exceed their image'),
        (set_field('annotations', 'id', 2), '1 ids of annotations repeat: 2'),
        (set_field('annotations', 'id', 0), '1 ids of annotations are text or 0; number them from 1'),
        (set_field('annotations', 'id', '1'), '1 ids of annotations are text or 0'),
        (set_field('annotations', 'id', True), '1 of 8 annotations have no usable field "id"'),
        (set_field('annotations', 'id', 2**60), '1 of 8 annotations have no usable field "id"'),
        (
            lambda content: [a.update(id=f'{a["id"]:x}-b') for a in content['annotations']],
            '8 ids of annotations are text',
        ),
        (set_field('images', 'id', 'first'), 'ids of images are text; COCO AP wants whole numbers: first'),
        (set_field('categories', 'id', 'cat'), 'ids of categories are text; COCO AP wants whole numbers: cat'),
        (set_field('images', 'id', 'a\0'), '1 of 4 images have no usable field "id"'),
        (set_field('images', 'width', True), '1 of 4 images have no usable field "width"'),
        (set_field('annotations', 'iscrowd', 256), '1 annotations have an iscrowd other than 0 and 1; ids: 1'),
        (set_field('annotations', 'area', 2e10), 'no area up to 1e+10; ids: 1'),
        (set_field('annotations', 'ignore', 1), '1 of 8 boxes have "ignore" set: mmdet leaves'),
        (lambda content: [a.update(ignore=1) for a in content['annotations']], '8 of 8 boxes have "ignore" set'),
        (lambda content: [a.update(ignore=1) for a in content['annotations']], 'no annotation to train on'),
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
def test_errors_name_what_is_wrong(check, change, message):
    report = check(change)
    assert any(message in error for error in report.errors), report


@pytest.mark.parametrize(
    ('classes', 'level', 'message'),
    [
        (('cat', 'bird'), 'errors', "1 of 2 classes of the config are no categories of the file: 'bird'"),
        (('cat',), 'warnings', "1 of 2 categories of the file are not in the config, their boxes are left out: 'dog'"),
        (('dog', 'cat'), 'errors', "write 'cat', 'dog'"),
        (('cat', 'dog', 'cat'), 'errors', 'more than once in metainfo.classes: cat'),
        ('cat', 'errors', "('cat',)"),
    ],
)
def test_classes_that_do_not_match(check, classes, level, message):
    report = check(classes=classes)
    assert any(message in text for text in getattr(report, level)), report
    assert bool(report.errors) == (level == 'errors')


def test_a_missing_or_malformed_file(make_coco, tmp_path):
    ann_file, img_dir, _ = make_coco()
    assert 'DATA_ROOT' in check_coco(tmp_path / 'lost.json', img_dir).errors[0]
    ann_file.write_text('{"images": [,]}')
    assert 'line 1 column 13' in check_coco(ann_file, img_dir).errors[0]
    ann_file.write_text('[]')
    assert 'no list "images"' in check_coco(ann_file, img_dir).errors[0]


@pytest.mark.parametrize(
    ('encoding', 'name'), [('utf-8-sig', 'UTF-8 with a byte order mark'), ('utf-16', 'UTF-16'), ('utf-32', 'UTF-32')]
)
def test_json_in_an_encoding_that_pycocotools_does_not_read(make_coco, encoding, name):
    ann_file, img_dir, _ = make_coco()
    ann_file.write_text(ann_file.read_text(), encoding)
    with pytest.raises(ValueError, match=r'BOM|codec|Expecting'):
        COCO(ann_file)
    (error,) = check_coco(ann_file, img_dir).errors
    assert f'is {name}, which pycocotools does not read; save it as UTF-8' in error


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'version https://git-lfs.github.com/spec/v1', 'git-LFS, not the file itself; run `git lfs pull`'),
        (b'<html>', 'an HTML page'),
        (
            '["größe"]'.encode('latin-1'),
            "'utf-8' codec can't decode byte 0xf6 in position 4: invalid start byte; save it as UTF-8",
        ),
        (b'', 'Expecting value'),
    ],
)
def test_a_file_that_is_no_json_is_told_for_what_it_looks_like(make_coco, content, reason):
    ann_file, img_dir, _ = make_coco()
    ann_file.write_bytes(content)
    (error,) = check_coco(ann_file, img_dir).errors
    assert reason in error


@pytest.mark.parametrize(
    ('area', 'contradicts'),
    [(0.5, True), (0.9, True), (300, False), (600, False), (640, False), (700, True), (1e6, True)],
)
def test_an_area_that_contradicts_its_box_is_warned_of(check, area, contradicts):
    def change(content):
        content['annotations'][0].update(bbox=[5, 5, 20, 30], area=area)
        if area < 1:
            content['annotations'][0]['bbox'] = [5, 5, 50, 40]

    report = check(change)
    assert report.errors == []
    assert bool(report.warnings) == contradicts
    if contradicts:
        assert '1 of 8 boxes have an area that contradicts them' in report.warnings[0]
        assert f'train_0.png ({area:g}, box ' in report.warnings[0]


def test_what_large_datasets_contain_does_not_stop(check):
    """A rare empty box, images without boxes, crowds, boxes slightly outside, gaps between ids."""

    def change(content):
        annotations = content['annotations']
        annotations[0]['bbox'] = [5, 5, 10, 0]
        annotations[2]['bbox'] = [40, 20, 96.4 - 40, 64.3 - 20]
        annotations[4]['bbox'] = [40, 20, 60, 30]  # four pixels outside
        annotations[6]['iscrowd'] = 1
        annotations[8]['bbox'] = [40, 20, 1, 5]
        del annotations[10:12]

    report = check(change, ('cat', 'dog'), num_images=60)
    assert report.errors == []
    warnings, notes = '\n'.join(report.warnings), '\n'.join(report.notes)
    assert (
        '1 of 118 boxes are empty or thinner than a pixel: not trained on, but counted by COCO AP: train_0' in warnings
    )
    assert '1 of 118 boxes exceed their image (bbox must be x, y, width, height): train_2.png' in warnings
    assert 'are one pixel thin: train_4.png' in notes
    assert 'are crowds: ignored in training and evaluation: train_3.png' in notes
    assert '1 of 60 images have no boxes: train_5.png' in notes


def test_a_class_that_never_occurs_is_noted(check):
    def change(content):
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] == 10]

    assert check(change) == Report(notes=["1 of 2 classes never occur: 'dog'"])
    # boxes of a class that is not asked for do not count
    assert 'no annotation' in check(change, ('dog',)).errors[0]


def test_unusual_images(make_coco):
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
    assert '2 of 6 sampled images cannot be read' in errors
    assert 'train_2.png (' in errors
    assert 'train_5.png (' in errors
    assert 'train_4.png is 64 x 96, EXIF orientation 6, not 96 x 64' in errors
    assert 'are gray; the channel is repeated: train_0.png' in warnings
    assert 'four channels; they are converted to three: train_1.png' in warnings
    assert 'train_3' not in errors + warnings
    assert check_coco(ann_file, img_dir, sample=0) == Report()


def test_an_image_listed_twice_and_many_boxes_are_warned_of(check):
    def change(content):
        first = content['annotations'][0]
        content['annotations'] += [dict(first, id=i) for i in range(1000, 1100)]
        content['images'][1]['file_name'] = 'train_0.png'

    report = check(change)
    assert report.errors == []
    assert 'more than once: train_0.png' in report.warnings[0]
    assert '1 times an image has more than 100 boxes of a class' in report.warnings[1]
