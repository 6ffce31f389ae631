import json
import os
import re
import sys

import numpy as np
import pytest
from helpers.coco import coco_dataset
from mmengine.config import Config
from PIL import Image


@pytest.fixture
def check(load_tool, monkeypatch, capsys):
    main = load_tool('misc/check_dataset.py').main

    def run(*args) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    return run


def test_annotations(check, make_coco):
    ann_file, img_dir, _ = make_coco()
    assert check(ann_file, '--images', img_dir) == (0, 'nothing found\n')
    code, text = check(ann_file, '--images', img_dir, '--classes', 'cat,bird')
    assert code == 1
    assert "error: 1 of 2 classes of the config are no categories of the file: 'bird'" in text
    assert check(ann_file)[0] == 2


def test_hostile_files_neither_hang_nor_crash(check, make_coco, tmp_path):
    ann_file, img_dir, content = make_coco()
    names = [image['file_name'] for image in content['images']]
    (img_dir / names[0]).unlink()
    os.mkfifo(img_dir / names[0])
    (img_dir / names[1]).rename(img_dir / 'a\nerror: b.png')
    (img_dir / 'a\nerror: b.png').write_bytes(b'')
    content['images'][1]['file_name'] = 'a\nerror: b.png'
    ann_file.write_text(json.dumps(content))
    code, text = check(ann_file, '--images', img_dir)
    assert code == 1
    assert '2 of 4 sampled images cannot be read' in text
    assert text.count('\n') == 1

    ann_file.write_text('[' * 10**6)
    code, text = check(ann_file, '--images', img_dir)
    assert code == 1
    assert 'cannot be read as JSON: maximum recursion depth' in text
    os.mkfifo(tmp_path / 'fifo.json')
    code, text = check(tmp_path / 'fifo.json', '--images', img_dir)
    assert code == 1
    assert 'Not a regular file' in text


OPENCV, PILLOW = {}, dict(imdecode_backend='pillow')
UNROTATED = dict(color_type='color_ignore_orientation')


@pytest.mark.parametrize(
    ('options', 'kind', 'code', 'message'),
    [
        (OPENCV, 'deep', 0, '1 of 4 sampled images are gray'),
        (PILLOW, 'deep', 1, '1 of 4 sampled images have more than 8 bits, which LoadImageFromFile clips to white'),
        (UNROTATED, 'rotated', 1, 'is 96 x 64, EXIF orientation 6, which LoadImageFromFile does not apply, not 64 x'),
        (PILLOW, 'rotated', 0, '1 of 4 sampled images are rotated by EXIF'),
        (UNROTATED, 'not rotated', 0, '1 of 4 sampled images are not rotated by their EXIF orientation'),
        (OPENCV, 'int32', 1, '1 of 4 sampled images cannot be read: train_0.tif .*32-bit integers of no known range'),
    ],
)
def test_images_are_seen_as_the_configs_loader_reads_them(check, make_coco, tmp_path, options, kind, code, message):
    ann_file, img_dir, content = make_coco()
    entry = content['images'][0]
    rng = np.random.default_rng(0)
    if kind in ('deep', 'int32'):
        entry['file_name'] = 'train_0.tif'
        top, dtype = (2**16, np.uint16) if kind == 'deep' else (2**31, np.int32)
        Image.fromarray((rng.random((64, 96)) * top).astype(dtype)).save(img_dir / 'train_0.tif')
    else:
        entry['file_name'] = 'train_0.jpg'
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(img_dir / 'train_0.jpg', exif=exif)
        if kind == 'rotated':
            entry.update(width=64, height=96)
            for annotation in content['annotations']:
                annotation['bbox'] = [1, 1, 20, 20]
    ann_file.write_text(json.dumps(content))
    pipeline = [dict(type='LoadImageFromFile', **options)]
    config = tmp_path / 'config.py'
    Config(dict(train_dataloader=dict(dataset=coco_dataset(tmp_path, pipeline=pipeline)))).dump(config)
    found, text = check(config)
    assert found == code, text
    assert re.search(message, text)


@pytest.mark.parametrize('orientation', [3, 2, 4, 6, 5, 7])
def test_an_orientation_that_the_loader_leaves_is_found_whatever_the_shape(check, make_coco, tmp_path, orientation):
    _, img_dir, content = make_coco()
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content['images'][0]['file_name'] = 'turned.jpg'
    Image.fromarray(pixels).save(img_dir / 'turned.jpg', exif=exif)
    (tmp_path / 'annotations' / 'instances_train.json').write_text(json.dumps(content))
    for color, code, message in (
        (
            'color_ignore_orientation',
            0,
            '1 of 4 sampled images are not rotated by their EXIF orientation in LoadImageFromFile',
        ),
        ('color', orientation >= 5, 'EXIF orientation' if orientation >= 5 else '1 of 4 sampled images are rotated by'),
    ):
        config = tmp_path / 'config.py'
        pipeline = [dict(type='LoadImageFromFile', color_type=color)]
        Config(dict(train_dataloader=dict(dataset=coco_dataset(tmp_path, pipeline=pipeline)))).dump(config)
        found, text = check(config)
        assert found == code, text
        assert message in text


def test_config(check, make_coco, tmp_path):
    make_coco()
    config = tmp_path / 'config.py'
    Config(dict(train_dataloader=dict(dataset=coco_dataset(tmp_path, pipeline=[])))).dump(config)
    assert check(config) == (0, 'nothing found\n')
    code, text = check(config, '--cfg-options', 'train_dataloader.dataset.data_prefix.img=elsewhere')
    assert code == 1
    assert 'error: train: ' in text
    assert '4 of 4 images are not in' in text
