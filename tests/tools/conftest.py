from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def load_tool():
    """Import a script below tools/ by its path."""

    def load(path: str):
        spec = importlib.util.spec_from_file_location(Path(path).stem, TOOLS / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load
