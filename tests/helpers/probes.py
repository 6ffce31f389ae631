"""Probes at a small size: their data, and the project's configs on the tiny backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from .models import ROOT, TINY_ARCH, build_qbheat, write_images


@pytest.fixture
def probe_data(tmp_path: Path, monkeypatch) -> Path:
    """A folder of 8 training and 8 validation images of two classes, and a checkpoint; the configs read from it."""
    for split, seed in (('train', 0), ('val', 9)):
        for i, name in enumerate(('cat', 'dog')):
            write_images(tmp_path / split / name, 4, seed=seed + i)
    torch.save(dict(state_dict=build_qbheat().state_dict()), tmp_path / 'qbheat.pth')
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    monkeypatch.setenv('NUM_CLASSES', '2')
    return tmp_path


def probe(data: Path, kind: str, name: str | None = None, epochs: int = 2) -> Config:
    """The config of a kind of probe on the tiny backbone; ``name`` is that of the run."""
    (path,) = (ROOT / 'configs/benchmarks').glob(f'mobile-former-52m_1xb128-{kind}-coslr-*_imagenette.py')
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(
        arch=TINY_ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(data / 'qbheat.pth'), prefix='backbone.')
    )
    (cfg.model.head.get('head') or cfg.model.head).in_channels = 20
    if isinstance(cfg.model.neck, list):
        cfg.model.neck[1].input_features = 20
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = epochs
    cfg.work_dir = str(data / (name or kind))
    cfg.experiment_name = f'{data.name}_{name}_{kind}'
    return cfg
