"""Cache the frozen features of a probe: compute them once and train on them from disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn

from ..checkpoint import trust_init_cfg
from ..datasets import PackedImageDataset
from ..datasets.feature_dataset import ensure_features
from ..evaluation.functional.features import extract_features

# Transforms without randomness, with which an image has the same features in every epoch.
FIXED = ('LoadImage', 'LoadImageFromFile', 'Resize', 'ResizeEdge', 'CenterCrop', 'PackInputs')
LOADERS = ('train_dataloader', 'val_dataloader')


def cache_features(cfg: Config, folder: str | Path) -> None:
    """Compute the features of a probe's datasets once, and change its config to train on them.

    Each dataset has a sub-folder of ``folder`` with its features in float16 and hashes of what they depend on: the
    weights, the settings of the backbone and the preprocessor, the pipeline, and the list of images with their sizes
    and modification times. A cache whose hashes differ is rebuilt. Where the neck starts with global average pooling,
    the pooled features are cached.

    Args:
        cfg: Config of the probe; changed in place. Checkpoints of its run hold the head alone.
        folder: Folder of the cache.

    Raises:
        ValueError: If features would differ from epoch to epoch, or the run is distributed.
    """
    if cfg.get('launcher', 'none') != 'none':
        raise ValueError('--cache-features is for one process; a probe on cached features needs no more.')
    loaders = {name: cfg[name] for name in LOADERS if cfg.get(name)}
    for name, loader in loaders.items():
        check_pipeline(name, loader.dataset.get('pipeline', []))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    trust = (cfg.get('default_hooks', {}).get('plain_checkpoint') or {}).get('trust', False)
    backbone = build_frozen(cfg.model.backbone, trust)
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor') | dict(cfg.model.data_preprocessor)).to(get_device())
    pooled = starts_with_pooling(cfg.model.get('neck'))
    for name, loader in loaders.items():
        # All images in order, also where training shuffles and drops some.
        reader = Runner.build_dataloader(
            dict(
                loader,
                sampler=dict(type='DefaultSampler', shuffle=False),
                drop_last=False,
                persistent_workers=False,
                collate_fn=dict(type='default_collate'),
                dataset=dict(loader.dataset, test_mode=True),
            ),
            seed=0,
        )
        key = dict(
            weights=hash_weights(backbone),
            backbone=_hash({k: v for k, v in cfg.model.backbone.items() if k != 'init_cfg'}),
            preprocessor=_hash(cfg.model.data_preprocessor),
            pipeline=_hash(loader.dataset.pipeline),
            images=hash_images(reader.dataset),
            pooled=str(pooled),
        )
        target = Path(folder) / name.removesuffix('_dataloader')
        batches = (
            (features[..., None, None] if pooled else features, labels)
            for features, labels in extract_features(backbone, preprocessor, reader, pool=pooled)
        )
        ensure_features(target, batches, len(reader.dataset), key, dict(classes=reader.dataset.metainfo.get('classes')))
        loader.dataset = ConfigDict(type='FeatureDataset', folder=str(target))
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None  # tools/test.py needs images
    cfg.model.backbone = ConfigDict(type='IdentityBackbone')
    cfg.model.data_preprocessor = ConfigDict(
        type='ClsDataPreprocessor', num_classes=cfg.model.data_preprocessor.get('num_classes')
    )


def check_pipeline(name: str, pipeline: list[dict]) -> None:
    """Raise ValueError for a pipeline with transforms that may be random."""
    others = [step['type'] for step in pipeline if step['type'] not in FIXED]
    if others:
        raise ValueError(
            f'--cache-features needs a pipeline without augmentation, but {name} has {", ".join(others)}. Take a '
            f'config whose name has "noaug", or give {name}.dataset.pipeline the steps of validation '
            f'({", ".join(FIXED)}).'
        )


def build_frozen(cfg: dict, trust: bool = False) -> nn.Module:
    """Build a pretrained backbone in eval mode; with ``trust``, code in its checkpoint may run.

    Raises:
        ValueError: If it is not frozen, or has no checkpoint.
    """
    if (cfg.get('init_cfg') or {}).get('type') != 'Pretrained':
        raise ValueError('--cache-features needs a checkpoint: set model.backbone.init_cfg.')
    backbone = MODELS.build(cfg)
    if trust:
        trust_init_cfg(backbone.init_cfg)
    learning = [name for name, each in backbone.named_parameters() if each.requires_grad]
    if learning:
        raise ValueError(
            f'--cache-features needs a frozen backbone, but {len(learning)} of its parameters learn, the first of them '
            f'{learning[0]}: set model.backbone.frozen_stages.'
        )
    backbone.init_weights()
    return backbone.to(get_device()).eval()


def starts_with_pooling(neck: dict | list | None) -> bool:
    """Whether the neck starts with global average pooling, which does not change pooled features."""
    first = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    return bool(first) and first['type'] == 'GlobalAveragePooling'


def hash_weights(module: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_images(dataset: BaseDataset) -> str:
    """A hash of the images' paths, labels, sizes and modification times; of packed ones, of their checksums."""
    digest = hashlib.sha256()
    packed = isinstance(dataset, PackedImageDataset)
    if packed:
        digest.update(dataset.pack.digest.encode())
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if packed:
            digest.update(repr((info['img_path'], info.get('gt_label'))).encode())
            continue
        stat = Path(info['img_path']).stat()
        digest.update(repr((info['img_path'], info.get('gt_label'), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
