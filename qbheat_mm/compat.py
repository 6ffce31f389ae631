"""Mends for the packages this project stands on, each with what it mends and since when.

Every function here has no effect where its fault is absent. Nothing else in the project patches anybody.
"""

from __future__ import annotations

import importlib
import logging
import sys
from functools import cache, wraps
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

HOW_TO_INSTALL = (
    'Install one family of OpenMMLab packages, not both: the maintained builds with `pip install -r '
    'requirements/onedl.txt` (or `pip install "qbheat_mm[onedl]"`), or the original ones with `pip install -r '
    'requirements/openmmlab.txt` (or `"qbheat_mm[openmmlab]"`). The two overwrite each other\'s files: if both were '
    'installed, start from a fresh environment. `make setup` in a checkout does it all.'
)

BUILD_MMCV_OPS = (
    'pip install --no-build-isolation mmcv==2.1.0 (a compiler and 20 minutes), or a wheel built for your CUDA'
)


def check_packages() -> None:
    """Import mmengine, mmcv and mmpretrain, and mmdet where it is installed.

    Raises:
        ImportError: If one is missing or refuses another's version; says what to install.
    """
    for name in ('torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet'):
        if name == 'mmdet' and find_spec(name) is None:
            return  # pre-training and probing do without
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'qbheat_mm needs {name}, which cannot be imported ({error}). {HOW_TO_INSTALL}'
            ) from error
        except AssertionError as error:  # how OpenMMLab packages refuse each other's versions
            raise ImportError(f'{name} refuses the versions installed here: {error} {HOW_TO_INSTALL}') from error


class _MissingOps(ModuleType):
    """Stands in for ``mmcv._ext``; every op of it raises when called."""

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing_op(*args, **kwargs) -> NoReturn:
            raise RuntimeError(
                f'The op "{name}" needs the compiled ops of mmcv, which are not installed here. Nothing in qbheat_mm '
                f'calls it, so another part of the config does. Remedy: {BUILD_MMCV_OPS}.'
            )

        return missing_op


def provide_mmcv_ops() -> None:
    """Let ``import mmdet.models`` work without mmcv's compiled ops.

    mmcv loads its extension when ``mmcv.ops`` is imported, and mmdet imports that everywhere; the DETR family
    needs none of it (mmcv-lite 2.1.0, onedl-mmcv 2.3.6; open-mmlab/mmcv#3319). Compiled ops are left alone.
    """
    if 'mmcv._ext' in sys.modules or find_spec('mmcv._ext') is not None:
        return
    stand_in = _MissingOps('mmcv._ext')
    stand_in.__spec__ = ModuleSpec('mmcv._ext', loader=None)  # mmengine calls find_spec on the name
    sys.modules['mmcv._ext'] = stand_in


def has_compiled_ops() -> bool:
    """Whether mmcv's real extension is there, not the stand-in."""
    provide_mmcv_ops()
    return not isinstance(sys.modules.get('mmcv._ext'), _MissingOps)


def use_pytorch_deformable_attention() -> bool:
    """Let multi-scale deformable attention run on a GPU without mmcv's compiled ops.

    mmcv 2.1.0 and onedl-mmcv 2.3.6 hold the same attention in plain PyTorch, and take it on a CPU, but call the
    compiled op wherever the values lie on a GPU. Here the op's place is taken by that function, which says so once.

    Returns:
        Whether it had to be replaced.
    """
    if has_compiled_ops():
        return False
    from mmcv.ops import multi_scale_deform_attn as module

    class PyTorchAttention:
        """Called as mmcv calls the autograd function of the op."""

        @staticmethod
        def apply(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step):
            warn_of_slow_attention()
            return module.multi_scale_deformable_attn_pytorch(
                value, spatial_shapes.tolist(), sampling_locations, attention_weights
            )

    module.MultiScaleDeformableAttnFunction = PyTorchAttention
    return True


@cache
def warn_of_slow_attention() -> None:
    """Say once that the slower way is taken."""
    from mmengine.logging import print_log

    print_log(
        "Multi-scale deformable attention runs in plain PyTorch, slower than mmcv's compiled op, which is not "
        f'installed. Remedy: {BUILD_MMCV_OPS}.',
        logger='current',
        level=logging.WARNING,
    )


def disable_multimodal_models() -> bool:
    """Keep mmpretrain's multimodal models from breaking ``import mmpretrain.models`` under transformers >= 5.

    mmpretrain 1.2.0 and onedl-mmpretrain 1.3.6 subclass names that transformers 5 removed, whenever transformers
    and pycocotools are both installed.

    Returns:
        Whether they had to be switched off.
    """
    try:
        major = int(version('transformers').split('.')[0])
    except PackageNotFoundError:
        return False
    if major < 5 or 'mmpretrain.models' in sys.modules:
        return False
    from mmpretrain.utils import dependency

    if not dependency.WITH_MULTIMODAL:
        return False
    dependency.WITH_MULTIMODAL = False
    print("qbheat_mm: mmpretrain's multimodal models are switched off, they need transformers < 5.", file=sys.stderr)
    return True


class _HueTurn(float):
    """A share of the color circle that times 255 is a whole number from 0 to 255."""

    def __mul__(self, steps: int) -> int:
        return int(float(self) * steps) % 256


def turn_hues_down() -> bool:
    """Let ColorJitter turn hues in both directions under NumPy 2.

    mmcv 2.1.0's adjust_hue takes ``np.uint8(hue_factor * 255)``, which NumPy 2 refuses for negative factors, so that
    MoCo-v2's augmentation stops with an OverflowError. onedl-mmcv 2.3.6 wraps the number around, as here
    (VBTI-development/onedl-mmcv#41).

    Returns:
        Whether it had to be replaced.
    """
    import mmcv
    import numpy as np

    original = mmcv.adjust_hue
    try:
        original(np.zeros((1, 1, 3), np.uint8), -0.5, backend='cv2')
    except OverflowError:

        @wraps(original)
        def adjust_hue(img, hue_factor, backend=None):
            return original(img, _HueTurn(hue_factor), backend)

        mmcv.adjust_hue = mmcv.image.adjust_hue = adjust_hue
        return True
    return False


def apply() -> None:
    """Check the packages and apply every mend that they need."""
    check_packages()
    turn_hues_down()
    provide_mmcv_ops()
    use_pytorch_deformable_attention()
    disable_multimodal_models()


def in_force() -> list[str]:
    """The mends that this environment needed, after ``import qbheat_mm``."""
    from mmpretrain.utils import dependency

    mends = []
    if not has_compiled_ops():
        mends.append('a stand-in for the compiled ops of mmcv, and deformable attention in plain PyTorch')
    if find_spec('transformers') is not None and not dependency.WITH_MULTIMODAL:
        mends.append("mmpretrain's multimodal models are switched off")
    return mends
