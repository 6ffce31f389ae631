"""Small things that many tests need: images, a tiny backbone, a tiny model."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from mmengine.registry import Registry
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

# Four stages at strides 4 to 32 with 8 to 20 channels: a Mobile-Former in everything but its size.
TINY_ARCH = dict(
    stem_channels=8,
    token_dims=16,
    num_tokens=2,
    blocks=[(2, 8, 2, 0), (2, 8, 1, 2), (2, 12, 2, 2), (2, 16, 2, 2), (2, 16, 1, 2), (2, 20, 2, 2)],
)


# Of an image to a batch of QB-Heat's training, at 64 px.
PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', ignore_empty=True),
    dict(type='RandomResizedCrop', scale=64, backend='pillow'),
    dict(type='QuarterMask'),
    dict(type='PackInputs', meta_keys=('img_path', 'visible_origin')),
]


@functools.cache  # a second import would register its components a second time
def load_script(path: str) -> ModuleType:
    """Import a script by its path in the project; modules beside it are found as when it is run."""
    sys.path.insert(0, str((ROOT / path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


def own_classes() -> list[type]:
    """Every class of this project that a config can name."""
    packages = [importlib.import_module(f'{name}.registry') for name in ('mmengine', 'mmpretrain', 'mmdet')]
    registries = [each for package in packages for each in vars(package).values() if isinstance(each, Registry)]
    classes = {each for registry in registries for each in registry.module_dict.values()}
    ours = [each for each in classes if each.__module__.startswith('qbheat_mm.')]
    return sorted(ours, key=lambda each: each.__name__)


def write_images(folder: Path, count: int, size: int = 64, seed: int = 0, suffix: str = '.jpg') -> list[Path]:
    """Smooth random images, so that JPEG keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        paths.append(folder / f'{i:03d}{suffix}')
        small.resize((size, size), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def frozen_classifier_config(*neck: dict) -> dict:
    """A linear classifier on the tiny backbone, frozen and random; ``neck`` comes after the pooling."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 1]),
        backbone=dict(type='MobileFormer', arch=TINY_ARCH, frozen_stages=4),
        neck=[dict(type='GlobalAveragePooling'), *neck],
        head=dict(type='LinearClsHead', num_classes=2, in_channels=20),
    )


def qbheat_config(neck: dict | None = None, decoder: dict | None = None, head: dict | None = None, **kwargs) -> dict:
    """A QB-Heat model on the tiny backbone; each part's fields add to its own, the rest to the model's."""
    return (
        dict(
            type='QBHeat',
            data_preprocessor=dict(
                type='SelfSupDataPreprocessor',
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                bgr_to_rgb=True,
            ),
            backbone=dict(type='MobileFormer', arch=TINY_ARCH, output_stride=16),
            neck=dict(type='HeatNeck', in_channels=20) | (neck or {}),
            decoder=dict(type='QBHeatDecoder', in_channels=20, out_channels=768, embed_dims=16, depth=1, num_heads=2)
            | (decoder or {}),
            head=dict(type='QBHeatPretrainHead', loss=dict(type='PixelReconstructionLoss', criterion='L2'))
            | (head or {}),
            patch_size=16,
        )
        | kwargs
    )


def build_qbheat(**kwargs):
    torch.manual_seed(0)
    model = MODELS.build(qbheat_config(**kwargs))
    model.init_weights()
    return model


def samples_at(origins: list[tuple[int, int]]) -> list[DataSample]:
    """Data samples whose visible block lies at these cells."""
    samples = []
    for origin in origins:
        sample = DataSample()
        sample.set_field(origin, 'visible_origin', field_type='metainfo')
        samples.append(sample)
    return samples
