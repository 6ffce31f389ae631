"""Print the environment and its faults, each with a remedy; exits with 1 if there is one.

It needs nothing but Python itself, so it also explains failing imports.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import re
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet')
PACKAGES += ('pycocotools', 'faster_coco_eval', 'safetensors')
OPTIONAL = ('mmdet',)  # pre-training and probing do without
# Distributions that install the same files, the original ones first.
DISTRIBUTIONS = dict(
    mmengine=('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    mmcv=('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    mmpretrain=('mmpretrain', 'onedl-mmpretrain'),
    mmdet=('mmdet', 'onedl-mmdetection'),
)
ONE_FAMILY = (
    'Remedy: a fresh environment with one family, `pip install -r requirements/onedl.txt` or '
    '`pip install -r requirements/openmmlab.txt` (`make setup` makes one).'
)
INSTALL_TORCH = 'pip install torch==2.11.0 torchvision==0.26.0'
REMEDIES = dict(
    torch=f'Remedy: {INSTALL_TORCH}',
    torchvision=f'Remedy: torchvision must be built for this torch: {INSTALL_TORCH}',
    cv2='Remedy: pip uninstall opencv-python; pip install opencv-python-headless, which needs no desktop library',
    qbheat_mm='',  # its message names the remedy
)


def read_version(name: str) -> tuple[str | None, str]:
    """The version of a package, None if it is not installed, and its family; read without importing it.

    OneDL's builds ask for the version of their own distribution (``onedl-...``), the original packages state it.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return None, ''
    path = Path(spec.origin).with_name('version.py')
    text = path.read_text() if path.is_file() else ''
    if asked := re.search(r"version\(['\"](onedl-[\w-]+)", text):
        return _distribution_version(asked[1]) or 'unknown', 'OneDL'
    stated = re.search(r"^__version__\s*(?::\s*\w+)?\s*=\s*['\"]([^'\"]+)", text, re.M)
    return (stated[1] if stated else _distribution_version(name) or 'unknown'), 'original'


def _distribution_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_family(families: dict[str, str], problems: list[str]) -> str:
    """The family of the OpenMMLab packages, from the family of each; a mixture is added to ``problems``."""
    kinds = sorted(set(families.values()))
    if len(kinds) > 1:
        named = ', '.join(f'{name} is of the {family} one' for name, family in families.items())
        problems.append(f'Packages of both families are mixed: {named}. They do not work together. {ONE_FAMILY}')
        return ' and '.join(kinds) + ', wrongly'
    return kinds[0] if kinds else 'none'


def check_distributions(versions: dict[str, str | None], problems: list[str]) -> None:
    """Find distributions that overwrote each other: two of them, or files of another version."""
    for name, candidates in DISTRIBUTIONS.items():
        installed = {each: found for each in candidates if (found := _distribution_version(each))}
        if len(installed) > 1:
            problems.append(
                f"{' and '.join(installed)} are both installed and overwrite each other's files. {ONE_FAMILY}"
            )
        elif installed and versions.get(name) and versions[name] not in installed.values():
            ((distribution, stated),) = installed.items()
            problems.append(
                f'The files of {name} are of version {versions[name]}, but {distribution} {stated} is installed: '
                f'another package overwrote them. {ONE_FAMILY}'
            )


def check_imports(versions: dict[str, str | None], problems: list[str]) -> bool:
    """Import everything, unless there are problems already; whether ``import qbheat_mm`` works."""
    for name, found in versions.items():
        if found is None and name not in OPTIONAL:
            problems.append(
                f'{name} is not installed. Remedy: pip install -r requirements/onedl.txt (or `make setup`).'
            )
    if problems:
        return False
    sys.path.insert(0, str(ROOT))
    for name in ('torch', 'torchvision', 'cv2', 'qbheat_mm', *(['mmdet.models'] if versions['mmdet'] else [])):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever broken packages raise
            problems.append(f'`import {name}` fails: {type(error).__name__}: {error} {REMEDIES.get(name, ONE_FAMILY)}')
            return False
    return True


def describe_devices(problems: list[str]) -> list[str]:
    """CUDA and the backends of torch.distributed."""
    import torch
    from torch import distributed

    lines = [f'CUDA: torch was built {f"for {torch.version.cuda}" if torch.version.cuda else "without it"}']
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            lines.append(f'  GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB')
        lines.append(f'  bfloat16: {"yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"}')
    else:
        lines.append('  no GPU can be used; everything runs on the CPU, in float32')
        if Path('/proc/driver/nvidia/version').exists():
            problems.append(
                "There is an NVIDIA driver, but torch cannot use it. Remedy: a torch built for the driver's CUDA "
                '(`nvidia-smi` names it), and CUDA_VISIBLE_DEVICES unset.'
            )
    backends = {
        name: distributed.is_available() and distributed.is_backend_available(name.lower()) for name in ('NCCL', 'gloo')
    }
    listed = (f'{name} {"yes" if available else "no"}' for name, available in backends.items())
    lines.append(f'torch.distributed: {", ".join(listed)}')
    needed = 'NCCL' if on_gpu else 'gloo'
    if not backends[needed]:
        problems.append(f'torch has no {needed}, which several processes need here. {REMEDIES["torch"]}')
    return lines


def describe_patches() -> list[str]:
    """Whether mmcv's ops are compiled, and the patches of :mod:`qbheat_mm.compat`."""
    from qbheat_mm import compat

    lines = [f'ops of mmcv: {"compiled" if compat.has_compiled_ops() else "not compiled"}']
    if not compat.has_compiled_ops():
        from qbheat_mm.mmcv_ops import FAMILIES

        lines += [f'  through {library}, on CPU and GPU: {", ".join(names)}' for library, names in FAMILIES.items()]
        lines.append('  every other one raises an error that names the remedy')
    return [*lines, f'patches in force: {"; ".join(compat.applied_patches()) or "none"}']


def main() -> None:
    """Print all of it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    problems: list[str] = []
    print(f'Python {platform.python_version()} ({sys.executable}) on {platform.platform()}')
    found = {name: read_version(name) for name in PACKAGES}
    versions = {name: version for name, (version, _) in found.items()}
    for name, version in versions.items():
        print(f'{name} {version or "is not installed"}')
    families = {name: family for name, (_, family) in found.items() if name in DISTRIBUTIONS and family}
    print(f'family of the OpenMMLab packages: {find_family(families, problems)}')
    check_distributions(versions, problems)
    if check_imports(versions, problems):
        print('\n'.join([*describe_devices(problems), *describe_patches()]))
    for problem in problems:
        print(f'PROBLEM: {problem}')
    print('Everything fits.' if not problems else f'{len(problems)} problem(s), see above.')
    sys.exit(bool(problems))


if __name__ == '__main__':
    main()
