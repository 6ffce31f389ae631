"""Patches for the packages this project depends on, each with the versions that need it.

A patch has no effect where the fault is absent. No other module patches a package.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
import warnings
from functools import cache, wraps
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch import nn

HOW_TO_INSTALL = (
    'Install one family of OpenMMLab packages, not both: the maintained builds with `pip install -r '
    'requirements/onedl.txt` (or `pip install "qbheat_mm[onedl]"`), or the original ones with `pip install -r '
    'requirements/openmmlab.txt` (or `"qbheat_mm[openmmlab]"`). The two overwrite each other\'s files: if both were '
    'installed, start from a fresh environment. `make setup` in a checkout does it all.'
)


def how_to_build_ops() -> str:
    """The command that compiles mmcv's ops for the family of packages that is installed."""
    import mmcv

    if mmcv.__version__ < '2.2':  # mmdet 3.3.0 refuses any other of the original ones
        first = 'pip uninstall -y mmcv-lite && pip install "setuptools<81"'
        command = f'{first} && pip install --no-build-isolation mmcv=={mmcv.__version__}'
    else:
        package = f'onedl-mmcv=={mmcv.__version__}'
        command = f'pip install --force-reinstall --no-deps --no-build-isolation --no-binary onedl-mmcv {package}'
    return f'`{command}` (a compiler and 20 minutes of two cores), or a wheel of that version built for your CUDA'


# What the packages say on each start without a need to act. They are held back; everything else passes.
KNOWN_MESSAGES = {  # of onedl-mmpretrain 1.3.6 and onedl-mmdetection 3.5.1: OneDL's own datasets, a separate package
    'Could not import OneDL',
    'Could not import OneDL. Skipping OneDL datasets.',
}
KNOWN_WARNINGS = {  # message -> module; of mmdet 3.3.0 and onedl-mmdetection 3.5.1, once in a run
    'To copy construct from a tensor, it is recommended': r'mmdet\.models\.losses\.cross_entropy_loss',
}


def hold_back_known_messages() -> None:
    """Keep ``KNOWN_MESSAGES`` and ``KNOWN_WARNINGS`` off the terminal, in packages that are imported afterwards."""
    for message, module in KNOWN_WARNINGS.items():
        warnings.filterwarnings('ignore', message, module=module)
    from mmengine import logging as mmengine_logging

    original = mmengine_logging.print_log
    if hasattr(original, '__wrapped__'):
        return

    @wraps(original)
    def print_log(msg, *args, **kwargs) -> None:
        if msg not in KNOWN_MESSAGES:
            original(msg, *args, **kwargs)

    mmengine_logging.print_log = print_log


def check_packages(*names: str) -> None:
    """Import packages; mmdet where it is installed.

    Raises:
        ImportError: If one is missing or refuses another's version; says what to install.
    """
    for name in names:
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


class _Ops(ModuleType):
    """Stand-in for ``mmcv._ext``: the ops of :mod:`qbheat_mm.mmcv_ops`; any other one raises when called."""

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)
        from . import mmcv_ops

        if name in mmcv_ops.__all__:
            return getattr(mmcv_ops, name)

        def missing_op(*args, **kwargs) -> NoReturn:
            raise RuntimeError(
                f'The op "{name}" needs the compiled ops of mmcv, which are not installed here, and has no '
                f'counterpart in torchvision. Remedy: {how_to_build_ops()}.'
            )

        return missing_op


def provide_mmcv_ops() -> None:
    """Make ``mmcv.ops`` work without mmcv's compiled ops, as far as detectors need it; compiled ops are left alone.

    mmdet imports ``mmcv.ops`` everywhere, which loads the extension (mmcv-lite 2.1.0, onedl-mmcv 2.3.6;
    open-mmlab/mmcv#3319).
    """
    if 'mmcv._ext' in sys.modules or find_spec('mmcv._ext') is not None:
        return
    stand_in = _Ops('mmcv._ext')
    stand_in.__spec__ = ModuleSpec('mmcv._ext', loader=None)  # mmengine calls find_spec on the name
    sys.modules['mmcv._ext'] = stand_in


def has_compiled_ops() -> bool:
    """Whether mmcv's extension is installed, not the stand-in."""
    provide_mmcv_ops()
    return not isinstance(sys.modules.get('mmcv._ext'), _Ops)


def missing_ops(model: nn.Module) -> dict[str, list[str]]:
    """Ops that a model calls and that neither mmcv's extension nor :mod:`qbheat_mm.mmcv_ops` has.

    They are found by the modules of the model: those of ``mmcv.ops``, and those defined beside an imported function of
    ``mmcv.ops``. A file of ``mmcv.ops`` of which some op has a counterpart is taken as covered.

    Args:
        model: The model.

    Returns:
        Names of modules by the op that they call.
    """
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules() if not has_compiled_ops() else ():
        for kind in type(module).__mro__:
            beside = vars(sys.modules[kind.__module__]).values()
            functions = [each for each in beside if isinstance(each, FunctionType)]
            for file in {kind.__module__, *(each.__module__ for each in functions)}:
                if op := _op_without_counterpart(file):
                    found.setdefault(op, []).append(name)
    return {op: list(dict.fromkeys(names)) for op, names in found.items()}


@cache
def _op_without_counterpart(module: str) -> str | None:
    """The op that a module of ``mmcv.ops`` takes from the extension, unless one of several has a counterpart."""
    if not module.startswith('mmcv.ops.'):
        return None
    from . import mmcv_ops

    source = inspect.getsource(sys.modules[module])
    ops = re.findall(r'\bext_module\.(\w+)', source)
    covered = {*mmcv_ops.__all__, 'ms_deform_attn_forward'}.intersection(ops)
    return None if covered or not ops else min(ops, key=len)  # without a suffix of a variant


def warn_of_missing_ops(model: nn.Module) -> None:
    """Warn, when a model is built, of the ops at whose first call it would stop."""
    from mmengine.logging import print_log

    from .text import join_names

    for op, names in missing_ops(model).items():
        print_log(
            f'{join_names(names, 3)} of {type(model).__name__} call(s) the op "{op}", which needs the compiled ops of '
            'mmcv, and they are not installed here: training, or the first prediction, will stop. Remedy: '
            f'{how_to_build_ops()}.',
            logger='current',
            level=logging.WARNING,
        )


def use_pytorch_deformable_attention() -> bool:
    """Run multi-scale deformable attention on a GPU without mmcv's compiled ops, with one warning that it is slower.

    mmcv 2.1.0 and onedl-mmcv 2.3.6 include the same attention in plain PyTorch, but use it on a CPU only.

    Returns:
        Whether the op was replaced.
    """
    if has_compiled_ops():
        return False
    from mmcv.ops import multi_scale_deform_attn as module

    class PyTorchAttention:
        """The interface of the op's autograd function."""

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
    """Warn once that the slower implementation is used."""
    from mmengine.logging import print_log

    print_log(
        "Multi-scale deformable attention runs in plain PyTorch, slower than mmcv's compiled op, which is not "
        f'installed. Remedy: {how_to_build_ops()}.',
        logger='current',
        level=logging.WARNING,
    )


def disable_multimodal_models() -> bool:
    """Make ``import mmpretrain.models`` work with transformers >= 5.

    mmpretrain 1.2.0's and onedl-mmpretrain 1.3.6's multimodal models subclass names that transformers 5 removed.
    They are imported if transformers and pycocotools are both installed.

    Returns:
        Whether they were disabled.
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
    print("qbheat_mm: mmpretrain's multimodal models are disabled; they need transformers < 5.", file=sys.stderr)
    return True


class _HueFactor(float):
    """A hue factor whose product with 255 is an integer from 0 to 255."""

    def __mul__(self, steps: int) -> int:
        return int(float(self) * steps) % 256


def allow_negative_hue_factors() -> bool:
    """Make ColorJitter shift hues in both directions with NumPy 2.

    mmcv 2.1.0's adjust_hue calls ``np.uint8(hue_factor * 255)``, an OverflowError with NumPy 2 where the factor is
    negative, as in MoCo-v2's augmentation. onedl-mmcv 2.3.6 wraps the number around, as here
    (VBTI-development/onedl-mmcv#41).

    Returns:
        Whether the function was replaced.
    """
    import mmcv
    import numpy as np

    original = mmcv.adjust_hue
    try:
        original(np.zeros((1, 1, 3), np.uint8), -0.5, backend='cv2')
    except OverflowError:

        @wraps(original)
        def adjust_hue(img, hue_factor, backend=None):
            return original(img, _HueFactor(hue_factor), backend)

        mmcv.adjust_hue = mmcv.image.adjust_hue = adjust_hue
        return True
    return False


# The hooks that every Runner has; None in `default_hooks` removes them.
MMENGINE_HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}


def allow_switched_off_hooks() -> None:
    """Make ``default_hooks.NAME=None`` leave out any hook.

    mmengine 0.10.7's and onedl-mmengine 0.10.12's Runner takes None for its own six and asserts for others.
    """
    from mmengine.runner import FlexibleRunner, Runner

    def replace(original):
        @wraps(original)
        def register_default_hooks(self, hooks: dict | None = None) -> None:
            kept = {name: hook for name, hook in (hooks or {}).items() if hook is not None or name in MMENGINE_HOOKS}
            original(self, kept)

        return register_default_hooks

    for runner in (Runner, FlexibleRunner):
        runner.register_default_hooks = replace(runner.register_default_hooks)


def apply() -> None:
    """Check the packages and apply every patch that they need."""
    check_packages('torch', 'mmengine')
    hold_back_known_messages()
    check_packages('mmcv', 'mmpretrain', 'mmdet')
    allow_negative_hue_factors()
    provide_mmcv_ops()
    use_pytorch_deformable_attention()
    disable_multimodal_models()
    allow_switched_off_hooks()


def applied_patches() -> list[str]:
    """The patches that this environment needed, after ``import qbheat_mm``."""
    import mmcv
    from mmpretrain.utils import dependency

    patches = []
    if not has_compiled_ops():
        patches.append('ops of mmcv through torchvision, and deformable attention in plain PyTorch')
    if find_spec('transformers') is not None and not dependency.WITH_MULTIMODAL:
        patches.append("mmpretrain's multimodal models are disabled")
    if hasattr(mmcv.adjust_hue, '__wrapped__'):
        patches.append('negative hue factors with NumPy 2')
    return patches
