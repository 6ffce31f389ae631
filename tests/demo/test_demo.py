import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from helpers.models import ROOT, write_images
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

sys.path.insert(0, str(ROOT / 'demo'))
pytest.importorskip('skimage')

import make_data

import demo


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'data'
    make_data.make_demo_data(out)
    return out


def test_every_photograph_is_a_class_in_both_splits(data):
    for split, count in (('train', 240), ('val', 60)):
        folders = sorted(folder.name for folder in (data / split).iterdir())
        assert folders == sorted(make_data.PHOTOS)
        assert all(len(list((data / split / name).iterdir())) == count for name in folders)


def test_mean_color_alone_does_not_tell_the_class(data):
    """15 nearest neighbors in mean color stay near chance, 12.5 %."""

    def mean_colors(split):
        samples = [
            (np.asarray(Image.open(path)).mean((0, 1)), label)
            for label, folder in enumerate(sorted((data / split).iterdir()))
            for path in sorted(folder.iterdir())
        ]
        return np.array([color for color, _ in samples]), np.array([label for _, label in samples])

    train, train_labels = mean_colors('train')
    val, val_labels = mean_colors('val')
    distances = np.square(val[:, None] - train).sum(-1)
    votes = train_labels[np.argsort(distances, axis=1)[:, :15]]
    guesses = np.array([np.bincount(row).argmax() for row in votes])
    assert (guesses == val_labels).mean() < 0.2


def test_splits_come_from_disjoint_regions():
    tiles = make_data.load_tiles('chelsea')
    assert len(tiles['train']) == 6
    assert len(tiles['val']) == 3
    assert {row for row, _ in make_data.VAL_TILES} == {0, 1, 2}
    assert {column for _, column in make_data.VAL_TILES} == {0, 1, 2}


def test_detection_set_is_coco_with_boxes_inside_that_do_not_overlap(data):
    for split in ('train', 'val'):
        coco = COCO(str(data / 'detection' / 'annotations' / f'{split}.json'))
        assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(make_data.OBJECTS)
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(data / 'detection' / 'images' / image['file_name']) as opened:
                assert opened.size == (image['width'], image['height'])
            boxes = sorted(box['bbox'] for box in coco.loadAnns(coco.getAnnIds(image['id'])))
            assert boxes
            for x, y, w, h in boxes:
                assert 0 <= x <= x + w <= image['width']
                assert 0 <= y <= y + h <= image['height']
            for (x1, y1, w1, h1), (x2, y2, _, h2) in pairwise(boxes):
                assert x1 + w1 <= x2 or y1 + h1 <= y2 or y2 + h2 <= y1


def test_data_is_written_once(data):
    with pytest.raises(FileExistsError, match='name another folder'):
        make_data.make_demo_data(data)


def test_own_images_are_split_and_small_classes_refused(tmp_path):
    write_images(tmp_path / 'mine' / 'cat', 10)
    write_images(tmp_path / 'mine' / 'dog', 2)
    demo.split_folder(tmp_path / 'mine', tmp_path / 'split')
    counts = {
        (split, name): len(list((tmp_path / 'split' / split / name).iterdir()))
        for split in ('train', 'val')
        for name in ('cat', 'dog')
    }
    assert counts == {('train', 'cat'): 8, ('train', 'dog'): 1, ('val', 'cat'): 2, ('val', 'dog'): 1}
    write_images(tmp_path / 'mine' / 'bird', 1)
    with pytest.raises(SystemExit, match='bird" holds 1 images'):
        demo.split_folder(tmp_path / 'mine', tmp_path / 'split2')
    with pytest.raises(SystemExit, match='no folder'):
        demo.split_folder(tmp_path / 'nowhere', tmp_path / 'split3')


def test_summary_holds_what_the_curves_say(tmp_path):
    curves = dict(
        pretrain={'reconstruction/masked_loss': [1.2, 0.9], 'reconstruction/constant_loss': [1.0, 1.0]},
        probe={'accuracy/top1': [20.0, 60.0]},
        probe_random={'accuracy/top1': [40.0]},
        detection={'coco/bbox_mAP': [0.1], 'coco/bbox_mAP_50': [0.3]},
    )
    stages = {}
    for name, curve in curves.items():
        stages[name] = demo.Stage(name, 'config.py', tmp_path / name, tmp_path, seconds=1.0)
        folder = tmp_path / name / '20260101_000000' / 'vis_data'
        folder.mkdir(parents=True)
        records = [{key: value, 'step': i} for key, values in curve.items() for i, value in enumerate(values)]
        (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))
    summary = demo.summarize(stages, num_classes=8)
    assert summary['pretrain'] == dict(loss_first=1.2, loss_last=0.9, loss_constant=1.0)
    assert summary['linear_probe'] == dict(top1=60.0, top1_random_backbone=40.0, top1_chance=12.5)
    assert summary['detection'] == dict(bbox_mAP=0.1, bbox_mAP_50=0.3)
    assert set(summary['seconds']) == set(curves)


@pytest.mark.parametrize('config', ['qbheat_mobile-former-52m_demo.py', 'linear_mobile-former-52m-random_demo.py'])
def test_few_images_are_seen_for_more_epochs(config):
    """The schedule ends with the epochs, however many they are."""
    cfg = Config.fromfile(demo.CONFIGS / config)
    longer = Config.fromfile(demo.CONFIGS / config)
    longer.merge_from_dict(demo.stretch_schedule(config, 5))
    assert longer.train_cfg.max_epochs == 5 * cfg.train_cfg.max_epochs
    assert (
        longer.train_cfg.max_epochs % longer.train_cfg.val_interval
        == cfg.train_cfg.max_epochs % cfg.train_cfg.val_interval
    )
    assert longer.param_scheduler[-1].end == longer.train_cfg.max_epochs
