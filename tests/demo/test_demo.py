"""The demo: its data, its summary, and what it refuses."""

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
    (out.parent / 'data.partial').mkdir()
    make_data.make_demo_data(out)
    assert sorted(out.parent.iterdir()) == [out, out.parent / 'data.partial']  # nothing of others was removed
    return out


def test_every_photograph_is_a_class_in_both_splits(data):
    for split, count in (('train', 240), ('val', 60)):
        folders = sorted((data / split).iterdir())
        assert [folder.name for folder in folders] == sorted(make_data.PHOTOS)
        assert all(len(list(folder.iterdir())) == count for folder in folders)


def test_mean_color_alone_does_not_tell_the_class(data):
    """15 nearest neighbors in mean color stay near chance, 12.5 %."""
    colors, labels = {}, {}
    for split in ('train', 'val'):
        paths = sorted((data / split).glob('*/*'))
        colors[split] = np.array([np.asarray(Image.open(path)).mean((0, 1)) for path in paths])
        labels[split] = np.array([make_data.PHOTOS.index(path.parent.name) for path in paths])
    distances = np.square(colors['val'][:, None] - colors['train']).sum(-1)
    votes = labels['train'][np.argsort(distances, axis=1)[:, :15]]
    guesses = np.array([np.bincount(row).argmax() for row in votes])
    assert (guesses == labels['val']).mean() < 0.2


def test_splits_come_from_disjoint_regions():
    tiles = make_data.load_tiles('chelsea')
    assert {split: len(each) for split, each in tiles.items()} == dict(train=6, val=3)
    rows, columns = zip(*make_data.VAL_TILES, strict=True)
    assert set(rows) == set(columns) == {0, 1, 2}


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


def test_existing_folders_are_refused(data, monkeypatch, capsys):
    with pytest.raises(FileExistsError, match='name another'):
        make_data.make_demo_data(data)
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--work-dir', str(data)])
    with pytest.raises(SystemExit):
        demo.main()
    assert 'exists; name another, or remove it' in capsys.readouterr().err
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--data', str(data / 'train'), '--work-dir', str(data)])
    with pytest.raises(SystemExit):
        demo.main()
    assert 'lies in the work dir' in capsys.readouterr().err
    assert data.exists()


def test_own_images_are_split_and_small_classes_refused(tmp_path):
    mine, split = tmp_path / 'mine', tmp_path / 'split'
    write_images(mine / 'cat', 10)
    with pytest.raises(SystemExit, match='holds 1 class folders; the probe needs two or more'):
        demo.split_folder(mine, split)
    write_images(mine / 'dog', 2)
    demo.split_folder(mine, split)
    counts = {f'{path.parent.name}/{path.name}': len(list(path.iterdir())) for path in split.glob('*/*')}
    assert counts == {'train/cat': 8, 'train/dog': 1, 'val/cat': 2, 'val/dog': 1}
    write_images(mine / 'bird', 1)
    with pytest.raises(SystemExit, match='bird" holds 1 images'):
        demo.split_folder(mine, tmp_path / 'split2')
    with pytest.raises(SystemExit, match='no folder'):
        demo.split_folder(tmp_path / 'nowhere', tmp_path / 'split3')


def test_summary_holds_what_the_curves_say(tmp_path):
    curves = dict(
        pretrain={'reconstruction/masked_loss': [1.2, 0.9], 'reconstruction/constant_loss': [1.0, 1.0]},
        probe={'accuracy/top1': [20.0, 60.0]},
        probe_random={'accuracy/top1': [40.0]},
        detection={'coco/bbox_mAP': [0.1], 'coco/bbox_mAP_50': [0.3]},
    )
    for name, curve in curves.items():
        folder = tmp_path / name / '20260101_000000' / 'vis_data'
        folder.mkdir(parents=True)
        records = [{key: value, 'step': i} for key, values in curve.items() for i, value in enumerate(values)]
        (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))
    assert demo.summarize(tmp_path, num_classes=8, seconds=dict.fromkeys(curves, 1.0)) == dict(
        pretrain=dict(loss_first=1.2, loss_last=0.9, loss_constant=1.0),
        linear_probe=dict(top1=60.0, top1_random_backbone=40.0, top1_chance=12.5),
        detection=dict(bbox_mAP=0.1, bbox_mAP_50=0.3),
        seconds=dict.fromkeys(curves, 1.0),
    )


@pytest.mark.parametrize('config', ['qbheat_mobile-former-52m_demo.py', 'linear_mobile-former-52m-random_demo.py'])
def test_few_images_are_seen_for_more_epochs(config):
    """The schedule ends with the epochs, however many they are."""
    cfg, longer = (Config.fromfile(demo.CONFIGS / config) for _ in range(2))
    longer.merge_from_dict(demo.stretch_schedule(config, 5))
    epochs, interval = longer.train_cfg.max_epochs, longer.train_cfg.val_interval
    assert epochs == 5 * cfg.train_cfg.max_epochs == longer.param_scheduler[-1].end
    assert epochs % interval == cfg.train_cfg.max_epochs % cfg.train_cfg.val_interval
