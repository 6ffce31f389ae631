"""This project's models in mmpretrain's model index, for ``mmpretrain.list_models`` and ``mmpretrain.get_model``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmengine.runner import CheckpointLoader
from mmpretrain.apis import ModelHub

from ..checkpoint import read_checkpoint

PACKAGE = Path(__file__).parents[1]
# configs/ and weights/: in the wheel below the package, in a checkout beside it.
ROOT = PACKAGE / '.mim' if (PACKAGE / '.mim').is_dir() else PACKAGE.parent
# Folders of configs; detection is left out, because mmpretrain cannot build the models of mmdet.
FOLDERS = ('qbheat', 'benchmarks', 'mobile_former', 'mocov2')
SCHEME = 'qbheat_mm://'


@cache  # mmpretrain refuses a second registration
def register_models() -> None:
    """Register the metafiles of this project with mmpretrain; without them, nothing happens."""
    for metafile in (ROOT / 'configs' / folder / 'metafile.yml' for folder in FOLDERS):
        if metafile.is_file():
            ModelHub.register_model_index(metafile, config_prefix=ROOT)


def local_address(address: str | None) -> str | None:
    """The path of a file of this project; any other address as it is."""
    return str(ROOT / address.removeprefix(SCHEME)) if address and address.startswith(SCHEME) else address


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_project(filename: str, map_location=None) -> dict:
    """Load a file of this project, the ``Weights`` of a metafile, for mmengine; no code in it is executed.

    Args:
        filename: ``qbheat_mm://`` and the path from the root of the project.
        map_location: Ignored; weights stay on the CPU until the model copies them.
    """
    return read_checkpoint(ROOT / filename.removeprefix(SCHEME))
