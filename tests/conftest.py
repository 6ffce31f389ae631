"""What every test needs."""

from __future__ import annotations

import os

if os.environ.get('QBHEAT_TEST_DEVICE') != 'cuda':  # tests/gpu/ alone wants one
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')

from pathlib import Path

import pytest
import torch
from helpers.coco import make_coco  # noqa: F401  a fixture
from helpers.models import load_script, write_images
from helpers.probes import probe_data  # noqa: F401  a fixture
from mmengine.registry import DefaultScope, init_default_scope

import qbheat_mm  # noqa: F401


@pytest.fixture(autouse=True)
def _mmpretrain_scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Eight images in two class folders."""
    for i, name in enumerate(('cat', 'dog')):
        write_images(tmp_path / 'images' / name, 4, seed=i)
    return tmp_path / 'images'


@pytest.fixture
def load_tool():
    """Import a script below tools/ by its path."""
    return lambda path: load_script(f'tools/{path}')


@pytest.fixture(scope='session')
def images(tmp_path_factory) -> Path:
    """A folder of eight images, which tests leave as it is."""
    folder = tmp_path_factory.mktemp('images')
    write_images(folder, 8)
    return folder
