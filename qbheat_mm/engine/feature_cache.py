"""Turn the config of a probe on frozen features into one that reads them from disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoint import guard_init_cfg
from ..datasets.feature_dataset import ensure_features

# What a pipeline may hold so that a image always gives the same features.
FIXED = ('LoadImage', 'LoadImageFromFile', 'Resize', 'ResizeEdge', 'CenterCrop', 'PackInputs')
LOADERS = ('train_dataloader', 'val_dataloader')


def cache_features(cfg: Config, folder: str | Path) -> None:
    """Compute the features of all images of ``cfg``'s data once, and let ``cfg`` train on them.

    One sub-folder of ``folder`` per dataset: memory-mapped float16, with a hash of everything the features follow
    from: the weights, the backbone's and preprocessor's settings, the pipeline, the list of images with their sizes
    and times of change. A cache whose hash differs is rebuilt. Where the neck begins with global average pooling, the
    pooled features are kept, which is all it needs.

    Args:
        cfg: Of a probe; changed in place. Checkpoints of its run hold the head alone.
        folder: Where the cache lies.

    Raises:
        ValueError: If features would differ from epoch to epoch, or the run is distributed.
    """
    if cfg.get('launcher', 'none') != 'none':
        raise ValueError('--cache-features is for one process; a probe on cached features needs no more.')
    loaders = {name: cfg[name] for name in LOADERS if cfg.get(name)}
    for name, loader in loaders.items():
        check_pipeline(name, loader.dataset.get('pipeline', []))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    trust = cfg.get('default_hooks', {}).get('plain_checkpoint', {}).get('trust', False)
    backbone = build_frozen(cfg.model.backbone, trust)
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor') | dict(cfg.model.data_preprocessor)).to(get_device())
    pooled = starts_with_pooling(cfg.model.get('neck'))
    for name, loader in loaders.items():
        # In order and whole, whatever training does with it.
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
        batches = encode(backbone, preprocessor, reader, pooled)
        ensure_features(target, batches, len(reader.dataset), key, dict(classes=reader.dataset.metainfo.get('classes')))
        loader.dataset = ConfigDict(type='FeatureDataset', folder=str(target))
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None  # tools/test.py takes images
    cfg.model.backbone = ConfigDict(type='IdentityBackbone')
    cfg.model.data_preprocessor = ConfigDict(
        type='ClsDataPreprocessor', num_classes=cfg.model.data_preprocessor.get('num_classes')
    )


def check_pipeline(name: str, pipeline: list[dict]) -> None:
    """Refuse a pipeline with steps that are not known to do the same every time."""
    others = [step['type'] for step in pipeline if step['type'] not in FIXED]
    if others:
        raise ValueError(
            f'--cache-features needs a pipeline without augmentation, but {name} has {", ".join(others)}. Take a '
            f'config whose name has "noaug", or give {name}.dataset.pipeline the steps of validation '
            f'({", ".join(FIXED)}).'
        )


def build_frozen(cfg: dict, trust: bool = False) -> nn.Module:
    """The backbone with its weights, in eval mode; with ``trust`` code in their file may run.

    Raises:
        ValueError: If it is not frozen, or random.
    """
    if (cfg.get('init_cfg') or {}).get('type') != 'Pretrained':
        raise ValueError('--cache-features needs a checkpoint: set model.backbone.init_cfg.')
    backbone = MODELS.build(cfg)
    guard_init_cfg(backbone.init_cfg, trust)
    learning = [name for name, each in backbone.named_parameters() if each.requires_grad]
    if learning:
        raise ValueError(
            f'--cache-features needs a frozen backbone, but {len(learning)} of its parameters learn, the first of them '
            f'{learning[0]}: set model.backbone.frozen_stages.'
        )
    backbone.init_weights()
    return backbone.to(get_device()).eval()


def starts_with_pooling(neck: dict | list | None) -> bool:
    """Whether the neck begins with global average pooling, which leaves pooled features as they are."""
    first = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    return bool(first) and first['type'] == 'GlobalAveragePooling'


@torch.no_grad()
def encode(
    backbone: nn.Module, preprocessor: nn.Module, loader: DataLoader, pooled: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, C, H, W), or (n, C, 1, 1) where pooled, and labels (n,) of each batch."""
    for data in loader:
        data = preprocessor(data, False)
        features = backbone(data['inputs'])[-1].float()
        labels = torch.cat([sample.gt_label for sample in data['data_samples']])
        yield features.mean((2, 3), keepdim=True) if pooled else features, labels


def hash_weights(module: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_images(dataset: BaseDataset) -> str:
    """A hash of the images' paths, labels, sizes and times of change."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        stat = Path(info['img_path']).stat()
        digest.update(repr((info['img_path'], info.get('gt_label'), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
