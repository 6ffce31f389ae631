import copy
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.probes import probe
from mmengine.config import Config
from mmengine.runner import Runner

from qbheat_mm.datasets import FeatureDataset, PackedImageDataset
from qbheat_mm.datasets.feature_dataset import write_features
from qbheat_mm.datasets.packing import pack_images
from qbheat_mm.engine.feature_cache import cache_features, hash_images


def config(data: Path) -> Config:
    return probe(data, 'linear-noaug')


@pytest.mark.parametrize(('kind', 'shape'), [('linear-noaug', (8, 20, 1, 1)), ('tran-1-noaug', (8, 20, 8, 8))])
def test_a_cached_probe_learns_what_the_uncached_one_learns(probe_data, kind, shape):
    runs = []
    for name in ('plain', 'cached'):
        cfg = probe(probe_data, kind, name, epochs=3)
        cfg.merge_from_dict({'randomness.seed': 0, 'optim_wrapper.optimizer.lr': 0.1})
        cfg.param_scheduler = None  # warm-up would last longer than the run
        if name == 'cached':
            cache_features(cfg, probe_data / 'cache')
        runner = Runner.from_cfg(cfg)
        head = runner.model.head
        torch.manual_seed(3)
        head.init_weights()
        start = copy.deepcopy(head.state_dict())
        head.init_weights = lambda: None
        runner.train()
        runs.append((head.state_dict(), runner.message_hub.get_scalar('val/accuracy/top1').current()))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=5e-3)  # float16's rounding
    assert runs[0][1] == runs[1][1]
    assert any((runs[0][0][key] - start[key]).abs().max() > 0.01 for key in start)  # something was learned
    features = FeatureDataset(str(probe_data / 'cache' / 'train')).features
    assert features.shape == shape
    assert isinstance(features, np.memmap)


def written(folder: Path) -> list[int]:
    return [(folder / split / 'features.npy').stat().st_mtime_ns for split in ('train', 'val')]


def test_only_a_stale_cache_is_rebuilt(probe_data, monkeypatch):
    messages = []
    monkeypatch.setattr('qbheat_mm.datasets.feature_dataset.print_log', lambda text, **kwargs: messages.append(text))
    cache_features(config(probe_data), probe_data / 'cache')
    first = written(probe_data / 'cache')
    cache_features(config(probe_data), probe_data / 'cache')
    assert written(probe_data / 'cache') == first
    assert all('read from' in text for text in messages[2:])

    weights = torch.load(probe_data / 'qbheat.pth')
    weights['state_dict']['backbone.stem.0.weight'][0, 0, 0, 0] += 1
    torch.save(weights, probe_data / 'qbheat.pth')
    cache_features(config(probe_data), probe_data / 'cache')
    second = written(probe_data / 'cache')
    assert all(a != b for a, b in zip(first, second))
    assert messages[-1].endswith('the cache is stale, changed: weights')

    cfg = config(probe_data)
    cfg.val_dataloader.dataset.pipeline.insert(1, dict(type='CenterCrop', crop_size=32))
    cache_features(cfg, probe_data / 'cache')
    assert written(probe_data / 'cache')[0] == second[0]
    assert FeatureDataset(str(probe_data / 'cache' / 'val')).features.shape == (8, 20, 1, 1)
    assert messages[-1].endswith('changed: pipeline')

    os.utime(probe_data / 'train' / 'cat' / '000.jpg', (1, 1))
    cache_features(config(probe_data), probe_data / 'cache')
    assert messages[-2].endswith('train, the cache is stale, changed: images')


def batches(count: int):
    for _ in range(count):
        yield torch.ones(4, 8, 16, 16), torch.zeros(4, dtype=torch.long)


def test_too_little_free_space_is_an_error_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r'cached in ".*train": 0\.41 GB are needed and 0\.00 GB are free'):
        write_features(tmp_path / 'train', batches(1), 100_000, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_partial_files(tmp_path):
    """The kernel refuses to let a file grow, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(OSError, match=r'cannot be cached in ".*train": .*Nothing of them was left'):
            write_features(tmp_path / 'train', batches(5), 20, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_rebuild_keeps_the_old_cache(tmp_path):
    write_features(tmp_path / 'train', batches(2), 8, dict(a='1'), dict(classes=None))

    def interrupted():
        yield from batches(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / 'train', interrupted(), 8, dict(a='2'), dict(classes=None))
    assert [path.name for path in tmp_path.iterdir()] == ['train']
    assert len(FeatureDataset(str(tmp_path / 'train'))) == 8


def test_features_too_large_for_float16_are_refused(tmp_path):
    with pytest.raises(ValueError, match='100000 and does not fit float16'):
        write_features(
            tmp_path / 'train', iter([(torch.full((1, 1, 1, 1), 1e5), torch.zeros(1))]), 1, {}, dict(classes=None)
        )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train_dataloader.dataset.pipeline': [dict(type='RandomFlip', prob=0.5)]}, 'train_dataloader has RandomFlip'),
        ({'model.backbone.frozen_stages': 2}, r'needs a frozen backbone, but \d+ of its parameters learn'),
        ({'model.backbone.init_cfg': None}, 'needs a checkpoint'),
        ({'launcher': 'pytorch'}, 'for one process'),
    ],
)
def test_features_that_would_change_from_epoch_to_epoch_are_refused(probe_data, change, message):
    cfg = config(probe_data)
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=message):
        cache_features(cfg, probe_data / 'cache')
    assert not (probe_data / 'cache').exists()


def test_packed_images_are_hashed_by_their_checksums(image_folder, tmp_path):
    hashes = []
    for size in (None, 32, None):
        pack_images(image_folder, tmp_path / 'pack', size)
        hashes.append(hash_images(PackedImageDataset(data_root=str(tmp_path / 'pack'))))
        shutil.rmtree(tmp_path / 'pack')
    assert hashes[0] == hashes[2] != hashes[1]
