"""Cached features of a frozen backbone: computed once, read in every epoch of a probe."""

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

from ..arguments import FileName, check_arguments
from ..checkpoint import atomic_dir, refuse_existing

FEATURES, LABELS, META = 'features.npy', 'labels.npy', 'meta.json'


@DATASETS.register_module()
class FeatureDataset(Dataset):
    """Dataset of the features that :func:`write_features` wrote to ``folder``."""

    @check_arguments
    def __init__(self, folder: FileName | Path) -> None:
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


def write_features(
    folder: Path, batches: Iterator[tuple[Tensor, Tensor]], count: int, key: dict[str, str], metainfo: dict
) -> None:
    """Write features to ``folder`` atomically, replacing an older cache and nothing else.

    Args:
        folder: The folder to write.
        batches: Features (n, C, H, W) and labels (n,).
        count: Total number of images.
        key: Everything the features depend on, as hashes.
        metainfo: Of the dataset, for example its classes.

    Raises:
        FileExistsError: If ``folder`` is something else than a cache.
        OSError: If the disk is full, or would be.
        ValueError: If a feature exceeds float16.
    """
    older = (folder / META).is_file() and {path.name for path in folder.iterdir()} <= {FEATURES, LABELS, META}
    if not older:
        refuse_existing(folder)
    try:
        with atomic_dir(folder, replace=older) as partial:
            np.save(partial / LABELS, _write_array(partial / FEATURES, batches, count))
            (partial / META).write_text(json.dumps(dict(key=key, metainfo=metainfo)))
    except OSError as error:
        raise OSError(
            f'The features cannot be cached in "{folder}": {error.strerror or error}. Nothing of them was left '
            'there. Name another folder with --cache-features, or train without it.'
        ) from error


def _write_array(path: Path, batches: Iterator[tuple[Tensor, Tensor]], count: int) -> np.ndarray:
    """Append batches to an .npy file in float16 and return the labels.

    Plain writes raise an error if the disk is full; a memory map would crash with SIGBUS.
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
    """:func:`write_features`, unless ``folder`` holds the features of this ``key``; then ``batches`` is not read."""
    meta = folder / META
    stored = json.loads(meta.read_text())['key'] if meta.is_file() else None
    if stored == key:
        print_log(f'Features: read from {folder}', logger='current')
        return
    why = 'there is no cache yet'
    if stored is not None:
        why = f'the cache is stale, changed: {", ".join(name for name in key if stored.get(name) != key[name])}'
    print_log(f'Features: {count} images are encoded for {folder}, {why}', logger='current')
    write_features(folder, batches, count, key, metainfo)
