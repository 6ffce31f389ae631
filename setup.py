import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (here / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-'))]


class BuildWithConfigs(build_py):
    """Add configs, tools, weights and the model index to the wheel, below the package's .mim, where `mim` looks."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # a checkout has them beside the package
        mim = Path(self.build_lib) / 'qbheat_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # from an earlier build
        for name in ('configs', 'tools', 'weights'):
            shutil.copytree(here / name, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(here / 'model-index.yml', mim)


version = {}
exec((here / 'qbheat_mm' / 'version.py').read_text(), version)

setup(
    name='qbheat_mm',
    version=version['__version__'],
    description='QB-Heat, self-supervised learning based on the heat equation, for MMPretrain and MMDetection',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['qbheat_mm', 'qbheat_mm.*']),
    py_modules=['qbheat_mm_cli'],
    package_data={'qbheat_mm': ['py.typed']},
    cmdclass={'build_py': BuildWithConfigs},
    # Two families of OpenMMLab packages share their import names and overwrite each other's files, so neither is a
    # hard requirement: `pip install qbheat_mm[onedl]` or `qbheat_mm[openmmlab]` selects one.
    install_requires=['pycocotools', 'faster-coco-eval', 'pydantic>=2.6', 'safetensors'],
    extras_require={
        'onedl': requirements('onedl'),
        'openmmlab': requirements('openmmlab'),
        'demo': requirements('demo'),
        'tests': requirements('tests'),
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Typing :: Typed',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
