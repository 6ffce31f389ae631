import copy
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import TINY_ARCH, build_qbheat, write_images
from mmengine.config import Config
from mmengine.runner import Runner

from qbheat_mm.datasets import FeatureDataset
from qbheat_mm.datasets.feature_dataset import write_features
from qbheat_mm.engine.feature_cache import cache_features

LOAD = dict(type='LoadImageFromFile', imdecode_backend='pillow')
HEADS = dict(
    linear=(
        [dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=20)],
        dict(type='LinearClsHead', num_classes=2, in_channels=20),
    ),
    tran=(None, dict(type='TransformerProbeHead', num_classes=2, in_channels=20, embed_dims=16, num_heads=2)),
)


@pytest.fixture
def data(tmp_path):
    for split, seed in (('train', 0), ('val', 9)):
        for i, name in enumerate(('cat', 'dog')):
            write_images(tmp_path / split / name, 4, seed=seed + i)
    torch.save(dict(state_dict=build_qbheat().state_dict()), tmp_path / 'qbheat.pth')
    return tmp_path


def config(data, kind: str = 'linear', name: str = 'probe') -> Config:
    def loader(split, **kwargs):
        return dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='ImageFolderDataset',
                data_root=str(data),
                data_prefix=split,
                pipeline=[LOAD, dict(type='PackInputs')],
            ),
            **kwargs,
        )

    neck, head = HEADS[kind]
    init = dict(type='Pretrained', checkpoint=str(data / 'qbheat.pth'), prefix='backbone.')
    return Config(
        dict(
            model=dict(
                type='ImageClassifier',
                data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[60.0] * 3, to_rgb=True),
                backbone=dict(type='MobileFormer', arch=TINY_ARCH, output_stride=16, frozen_stages=4, init_cfg=init),
                neck=neck,
                head=head,
            ),
            train_dataloader=loader('train', drop_last=True),
            val_dataloader=loader('val'),
            val_evaluator=dict(type='Accuracy'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
            train_cfg=dict(by_epoch=True, max_epochs=3),
            val_cfg=dict(),
            default_scope='mmpretrain',
            default_hooks=dict(check_classes=dict(type='ClassCheckHook')),
            randomness=dict(seed=0),
            work_dir=str(data / name),
            experiment_name=f'{data.name}_{name}_{kind}',
        )
    )


@pytest.mark.parametrize('kind', HEADS)
def test_a_cached_probe_learns_what_the_uncached_one_learns(data, kind):
    runs = []
    for name in ('plain', 'cached'):
        cfg = config(data, kind, name)
        if name == 'cached':
            cache_features(cfg, data / 'cache')
        runner = Runner.from_cfg(cfg)
        start = build_head(kind)
        runner.model.head.init_weights = lambda head=runner.model.head, start=start: head.load_state_dict(start)
        runner.train()
        runs.append((runner.model.head.state_dict(), runner.message_hub.get_scalar('val/accuracy/top1').current()))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=5e-3)  # float16's rounding
    assert runs[0][1] == runs[1][1]
    assert any((runs[0][0][key] - start[key]).abs().max() > 0.01 for key in start)  # something was learned
    features = FeatureDataset(str(data / 'cache' / 'train')).features
    assert features.shape == ((8, 20, 1, 1) if kind == 'linear' else (8, 20, 4, 4))
    assert isinstance(features, np.memmap)


def build_head(kind):
    from mmpretrain.registry import MODELS

    torch.manual_seed(3)
    head = MODELS.build(HEADS[kind][1])
    head.init_weights()
    return copy.deepcopy(head.state_dict())


def written(folder: Path) -> list[int]:
    return [(folder / split / 'features.npy').stat().st_mtime_ns for split in ('train', 'val')]


def test_a_stale_cache_is_noticed_and_rebuilt_and_a_fresh_one_is_not(data, monkeypatch):
    said = []
    monkeypatch.setattr('qbheat_mm.datasets.feature_dataset.print_log', lambda text, **kwargs: said.append(text))
    cache_features(config(data), data / 'cache')
    first = written(data / 'cache')
    cache_features(config(data), data / 'cache')
    assert written(data / 'cache') == first
    assert all('read from' in text for text in said[2:])

    weights = torch.load(data / 'qbheat.pth')
    weights['state_dict']['backbone.stem.0.weight'][0, 0, 0, 0] += 1
    torch.save(weights, data / 'qbheat.pth')
    cache_features(config(data), data / 'cache')
    second = written(data / 'cache')
    assert all(a != b for a, b in zip(first, second))
    assert said[-1].endswith('the cache is stale, changed: weights')

    cfg = config(data)
    cfg.val_dataloader.dataset.pipeline.insert(1, dict(type='CenterCrop', crop_size=32))
    cache_features(cfg, data / 'cache')
    assert written(data / 'cache')[0] == second[0]
    assert FeatureDataset(str(data / 'cache' / 'val')).features.shape == (8, 20, 1, 1)
    assert said[-1].endswith('changed: pipeline')

    os.utime(data / 'train' / 'cat' / '000.jpg', (1, 1))
    cache_features(config(data), data / 'cache')
    assert said[-2].endswith('train, the cache is stale, changed: images')


def batches(count: int):
    for _ in range(count):
        yield torch.ones(4, 8, 16, 16), torch.zeros(4, dtype=torch.long)


def test_a_full_disk_is_foreseen_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r'cached in ".*train": 0\.41 GB are needed and 0\.00 GB are free'):
        write_features(tmp_path / 'train', batches(1), 100_000, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path):
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


def test_what_would_change_from_epoch_to_epoch_is_refused(data):
    cfg = config(data)
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
    with pytest.raises(ValueError, match=r'train_dataloader has RandomFlip'):
        cache_features(cfg, data / 'cache')
    cfg = config(data)
    cfg.model.backbone.frozen_stages = 2
    with pytest.raises(ValueError, match=r'needs a frozen backbone, but \d+ of its parameters learn'):
        cache_features(cfg, data / 'cache')
    cfg = config(data)
    cfg.model.backbone.init_cfg = None
    with pytest.raises(ValueError, match='needs a checkpoint'):
        cache_features(cfg, data / 'cache')
    cfg = config(data)
    cfg.launcher = 'pytorch'
    with pytest.raises(ValueError, match='for one process'):
        cache_features(cfg, data / 'cache')
    assert not (data / 'cache').exists()
