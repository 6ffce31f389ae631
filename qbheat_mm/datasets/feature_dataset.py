"""Frozen features on disk, computed once and read in every epoch of a probe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoint import atomic_dir

FEATURES, LABELS, META = 'features.npy', 'labels.npy', 'meta.json'


@DATASETS.register_module()
class FeatureDataset(Dataset):
    """Reads a folder that :func:`write_features` filled.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str) -> None:
        self.data_root = folder
        self.metainfo = json.loads((Path(folder) / META).read_text())['metainfo']
        self.features = np.load(Path(folder) / FEATURES, mmap_mode='r')  # (N, C, H, W), float16
        self.labels = np.load(Path(folder) / LABELS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        """``inputs`` (C, H, W) in float32 and ``data_samples`` with the label."""
        features = torch.from_numpy(self.features[index].astype(np.float32))
        return dict(inputs=features, data_samples=DataSample().set_gt_label(int(self.labels[index])))


def differences(folder: Path, key: dict[str, str]) -> list[str] | None:
    """What changed since ``folder`` was written: names of ``key``'s parts; None where there is no such cache."""
    try:
        stored = json.loads((folder / META).read_text())['key']
    except FileNotFoundError:
        return None
    return [name for name, value in key.items() if stored.get(name) != value]


def write_features(
    folder: Path, batches: Iterator[tuple[Tensor, Tensor]], count: int, key: dict[str, str], metainfo: dict
) -> None:
    """Write features to ``folder`` atomically.

    Args:
        folder: Replaced where it exists.
        batches: Features (n, C, H, W) and labels (n,).
        count: Images in all.
        key: What the features depend on.
        metainfo: Of the dataset, for example its classes.

    Raises:
        OSError: If the disk is full, or will be.
        ValueError: If float16 cannot hold a feature.
    """
    try:
        with atomic_dir(folder, replace=True) as partial:
            labels = _write_array(partial / FEATURES, batches, count)
            np.save(partial / LABELS, labels)
            (partial / META).write_text(json.dumps(dict(key=key, metainfo=metainfo)))
    except OSError as error:
        raise OSError(
            f'The features cannot be cached in "{folder}": {error.strerror or error}. Nothing of them was left there. '
            'Name another folder with --cache-features, or train without it.'
        ) from error


def _write_array(path: Path, batches: Iterator[tuple[Tensor, Tensor]], count: int) -> np.ndarray:
    """Append batches to an .npy file in float16; returns the labels.

    Plain writes: a full disk is an error here, where a memory map would die of SIGBUS.
    """
    labels: list[np.ndarray] = []
    with path.open('wb') as file:
        for features, target in batches:
            half = features.half().cpu().numpy()
            if not np.isfinite(half).all():
                raise ValueError(
                    f'A feature is {float(features.abs().max()):g} and does not fit float16 (65504): train without '
                    '--cache-features.'
                )
            if not labels:
                size, free = count * half[0].nbytes, shutil.disk_usage(path.parent).free
                if size > free:
                    raise OSError(f'{size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free')
                header = dict(descr=half.dtype.str, fortran_order=False, shape=(count, *half.shape[1:]))
                np.lib.format.write_array_header_2_0(file, header)
            file.write(half.tobytes())
            labels.append(target.cpu().numpy())
    return np.concatenate(labels)


def ensure_features(
    folder: Path, batches: Iterator[tuple[Tensor, Tensor]], count: int, key: dict[str, str], metainfo: dict
) -> None:
    """As :func:`write_features`, unless ``folder`` already holds the features of this ``key``.

    ``batches`` is not touched then.
    """
    changed = differences(folder, key)
    if changed == []:
        print_log(f'Features: read from {folder}', logger='current')
        return
    why = 'there is no cache yet' if changed is None else f'the cache is stale, changed: {", ".join(changed)}'
    print_log(f'Features: {count} images are encoded for {folder}, {why}', logger='current')
    write_features(folder, batches, count, key, metainfo)
