from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import write_images
from mmpretrain.registry import DATASETS
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from qbheat_mm.datasets import FeatureDataset
from qbheat_mm.datasets.coco import index_images
from qbheat_mm.datasets.config_validation import check_classes
from qbheat_mm.datasets.feature_dataset import write_features
from qbheat_mm.datasets.image_folder import find_image_folders, list_images

PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', ignore_empty=True),
    dict(type='RandomResizedCrop', scale=32, backend='pillow'),
    dict(type='PackInputs', meta_keys=('img_path',)),
]


def build(root, **kwargs):
    return DATASETS.build(
        dict(dict(type='ImageFolderDataset', data_root=str(root), with_label=False, pipeline=PIPELINE), **kwargs)
    )


def test_a_tree_of_images_needs_no_labels(image_folder):
    dataset = build(image_folder)
    assert len(dataset) == 8
    assert dataset[0]['inputs'].shape == (3, 32, 32)
    assert 'gt_label' not in dataset[0]['data_samples']


def test_all_listings_agree(image_folder, tmp_path, load_tool):
    """On links, circles, hidden folders and what macOS adds: the dataset, the converters and the inferencer."""
    write_images(tmp_path / 'elsewhere', 3, seed=5)
    (image_folder / 'cat' / 'more').symlink_to(tmp_path / 'elsewhere')
    (image_folder / 'cat' / 'up').symlink_to(image_folder)
    (image_folder / 'loop').symlink_to('.')
    write_images(image_folder / '.ipynb_checkpoints', 2)
    write_images(image_folder / 'dog' / '.thumbnails', 2)
    (image_folder / 'dog' / '._000.jpg').write_bytes(b'macOS')
    expected = sorted(image_folder.glob('[cd]*/*.jpg')) + sorted((image_folder / 'cat' / 'more').iterdir())
    expected = {path for path in expected if not path.name.startswith('.')}
    assert len(expected) == 11
    for with_label in (True, False):
        dataset = build(image_folder, with_label=with_label)
        assert {Path(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))} == expected
    assert build(image_folder, with_label=True).metainfo['classes'] == ('cat', 'dog')
    assert set(list_images(image_folder)) == expected
    assert set(index_images(image_folder).values()) == expected
    classes = load_tool('dataset_converters/class_folders.py').read_classes(image_folder)
    assert {name: len(files) for name, files in classes.items()} == dict(cat=7, dog=4)


def test_a_folder_that_is_no_class_is_named(image_folder):
    (image_folder / 'notes').mkdir()
    dataset = build(image_folder, with_label=True)
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'notes')
    with pytest.raises(ValueError, match=r'is 2\. notes without an image: remove what is no class\. Set'):
        check_classes(dataset, dataset, num_classes=2)
    with pytest.raises(ValueError, match=r'3 class folders \(cat, dog, notes\), metainfo names 2 classes'):
        build(image_folder, with_label=True, metainfo=dict(classes=('cat', 'dog')))


@pytest.mark.parametrize('with_label', [True, False])
def test_splits_that_are_taken_as_classes_are_warned_of(tmp_path, with_label, monkeypatch):
    said = []
    monkeypatch.setattr('qbheat_mm.datasets.image_folder.print_log', lambda text, **kwargs: said.append(text))
    for name in ('train/cat', 'train/dog', 'val/cat', 'val/dog'):
        write_images(tmp_path / name, 1)
    build(tmp_path, with_label=with_label)
    (text,) = said
    assert 'called train, val: if these are splits, not classes, name one of them' in text
    assert f'for example "{tmp_path}/train"' in text
    build(tmp_path / 'train', with_label=with_label)
    write_images(tmp_path / 'bus', 1)
    build(tmp_path, with_label=with_label)  # a class may be called train
    assert said == [text]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere.*DATA_ROOT'):
        build(tmp_path / 'nowhere')


@pytest.mark.parametrize('content', [None, 'notes.txt'])
def test_folder_without_images_is_named_with_the_extensions(tmp_path, content):
    if content:
        (tmp_path / content).write_text('hello')
    with pytest.raises(RuntimeError, match=r'no image in the folder ".*" .*\.jpg.*\.webp') as error:
        build(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_labels_need_class_folders(tmp_path):
    write_images(tmp_path, 2)
    with pytest.raises(RuntimeError, match='no sub-folders'):
        build(tmp_path, with_label=True)


@pytest.fixture
def folder_with_unreadable_files(tmp_path):
    good = write_images(tmp_path, 4)
    (tmp_path / '900_truncated.jpg').write_bytes(good[0].read_bytes()[:200])
    (tmp_path / '901_text.jpg').write_text('not an image')
    (tmp_path / '902_empty.png').write_bytes(b'')
    return tmp_path


def test_unreadable_images_are_replaced_and_remembered(folder_with_unreadable_files):
    dataset = build(folder_with_unreadable_files)
    assert len(dataset) == 7
    paths = [dataset[i]['data_samples'].img_path for i in range(7)]
    assert all('90' not in path.rsplit('/', 1)[1] for path in paths)
    names = [path.rsplit('/', 1)[1] for path in dataset.skipped_images()]
    assert names == ['900_truncated.jpg', '901_text.jpg', '902_empty.png']


def test_unreadable_images_are_an_error_where_they_would_change_the_score(folder_with_unreadable_files):
    dataset = build(folder_with_unreadable_files, test_mode=True)
    with pytest.raises(RuntimeError, match='900_truncated'):
        dataset[4]


def test_only_unreadable_images_end_with_an_error_not_a_hang(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_text('no')
    with pytest.raises(RuntimeError, match='None of 3 images'):
        build(tmp_path)[0]


def test_the_protocol_of_a_torch_dataset(image_folder, tmp_path):
    features = torch.rand(8, 3, 1, 1)
    write_features(tmp_path / 'features', iter([(features, torch.arange(8))]), 8, {}, {})
    for dataset in (build(image_folder), FeatureDataset(str(tmp_path / 'features'))):
        assert len(list(islice(dataset, 100))) == len(dataset) == 8
        for index in (8, -9, 10**9):
            with pytest.raises(IndexError):
                dataset[index]
    dataset = build(image_folder)
    assert dataset[-1]['data_samples'].img_path == dataset[7]['data_samples'].img_path


@pytest.mark.parametrize(
    ('loader', 'reason'),
    [
        (dict(type='LoadImage', ignore_empty=True), 'ValueError: it is no image of a known format'),
        (dict(type='LoadImageFromFile', imdecode_backend='pillow', ignore_empty=True), 'cannot identify image file'),
        (dict(type='LoadImage', ignore_empty=True, backend_args=dict(backend='petrel')), 'petrel'),
        (dict(type='LoadReducedRandomResizedCrop', scale=32, ignore_empty=True), 'it is no image of a known format'),
    ],
)
@pytest.mark.parametrize('test_mode', [True, False])
def test_the_cause_is_told(tmp_path, loader, reason, test_mode):
    (tmp_path / 'a\nb.jpg').write_text('no')
    image = r'a\\nb\.jpg"'
    text = f'The image .*{image} cannot be read: ' if test_mode else f'None of 1 images .* read, from .*{image} on: '
    with pytest.raises(RuntimeError, match=f'{text}.*{reason}') as error:
        build(tmp_path, pipeline=[loader, *PIPELINE[1:]], test_mode=test_mode)[0]
    assert error.value.__cause__ is not None
    assert '\n' not in str(error.value)


def test_wrapped_folders_are_found(image_folder):
    folder = dict(type='ImageFolderDataset', data_root=str(image_folder), pipeline=PIPELINE)
    wrappers = [
        dict(type='RepeatDataset', dataset=folder, times=2),
        dict(type='ConcatDataset', datasets=[folder, dict(type='RepeatDataset', dataset=folder, times=2)]),
        dict(type='ClassBalancedDataset', dataset=folder, oversample_thr=0.1),
        dict(type='KFoldDataset', dataset=folder, num_splits=2),
    ]
    assert [len(find_image_folders(DATASETS.build(each))) for each in wrappers] == [1, 2, 1, 1]
    dataset = build(image_folder)
    assert find_image_folders(Subset(ConcatDataset([dataset, dataset]), [0])) == [dataset]
    assert find_image_folders(TensorDataset(torch.zeros(1))) == []


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'LA', 'CMYK', '1', 'I;16'])
def test_every_kind_of_image_becomes_three_channels(tmp_path, mode):
    array = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    image = Image.fromarray(array.astype(np.uint16) * 256) if mode == 'I;16' else Image.fromarray(array).convert(mode)
    image.save(tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png'))
    dataset = build(tmp_path)
    assert dataset[0]['inputs'].shape == (3, 32, 32)
    assert dataset.skipped_images() == []
