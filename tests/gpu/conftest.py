"""Tests for a GPU. QBHEAT_TEST_DEVICE=cuda runs them there, QBHEAT_TEST_DEVICE=cpu rehearses them on a CPU."""

import os
from pathlib import Path

import pytest
import torch
from helpers.models import write_images

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def device() -> torch.device:
    name = os.environ.get('QBHEAT_TEST_DEVICE')
    if name is None:
        pytest.skip('QBHEAT_TEST_DEVICE names no device: `make test-gpu` takes a GPU, QBHEAT_TEST_DEVICE=cpu the CPU')
    if name == 'cuda' and not torch.cuda.is_available():
        pytest.skip('this machine has no GPU that PyTorch can use')
    return torch.device(name)


@pytest.fixture(autouse=True)
def _no_tf32():
    """Convolutions would round their inputs to 10 bits, which float32 on a CPU does not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of sixteen images in two class folders."""
    folder = tmp_path_factory.mktemp('images')
    for i, name in enumerate(('cat', 'dog')):
        write_images(folder / name, 8, seed=i)
    return folder
