"""Write vectors.npz: results of mmcv 2.1.0's own C++ code for the calls of tests/helpers/mmcv_ops.py.

From the repository's root, in an environment with mmcv-lite 2.1.0 (its wheel holds the sources of all ops), a compiler
and ninja; a few minutes on one core:

    PYTHONPATH=tests python tests/data/mmcv_ops/make_vectors.py

It compiles the CPU code of NMS, RoIAlign and the deformable convolutions. RoIPool and the sigmoid focal loss have CUDA
kernels only; reference.cpp runs their bodies as loops.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from torch.utils.cpp_extension import load

HERE = Path(__file__).parent


def main() -> None:
    """Compile, take the place of the extension, and store what every call returns."""
    sources = Path(importlib.util.find_spec('mmcv').origin).parent / 'ops' / 'csrc'
    extension = load(
        'mmcv_reference',
        [str(HERE / 'reference.cpp')],
        extra_cflags=['-O1', '-std=c++17'],
        extra_include_paths=[str(sources / folder) for folder in ('', 'common', 'common/cuda')],
        with_cuda=False,
    )

    class Extension(type(sys)):
        def __getattr__(self, name):
            return getattr(extension, name, None)

    sys.modules['mmcv._ext'] = Extension('mmcv._ext')
    from helpers.mmcv_ops import all_cases

    vectors = {
        f'{name}/{i}': tensor.numpy() for name, case in all_cases().items() for i, tensor in enumerate(case())
    }
    np.savez_compressed(HERE / 'vectors.npz', **vectors)
    print(f'{len(vectors)} arrays')


if __name__ == '__main__':
    main()
