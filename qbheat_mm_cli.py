"""Command-line arguments that the tools share.

A module beside the package, not in it: importing any part of qbheat_mm imports PyTorch and OpenMMLab, which takes
seconds. Every tool parses its arguments before that, so `--help` and errors in the arguments show at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

TRUST_HELP = 'allow code in the checkpoint; only for files that you trust'


def config_file(text: str) -> str:
    """Check that a config file exists, for ``type`` of an argument."""
    path = Path(text).expanduser()
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise argparse.ArgumentTypeError(f'"{text}" is no config file; they end in .py, .json, .yaml or .yml')
    if not path.is_file():
        raise argparse.ArgumentTypeError(f'there is no config file "{text}"')
    return str(path)


def home_path(text: str) -> str:
    """A path; shells leave the ``~`` in ``--work-dir=~/runs`` to the program."""
    return str(Path(text).expanduser())


def _key_value(text: str) -> str:
    """Check the form of a KEY=VALUE."""
    key, found, _ = text.partition('=')
    if not found or not key:
        raise argparse.ArgumentTypeError(f'"{text}" is not KEY=VALUE')
    return text


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``."""
    parser.add_argument('--trust-checkpoint', action='store_true', help=TRUST_HELP)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, for :func:`qbheat_mm.engine.launch.merge_options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        type=_key_value,
        default=[],
        metavar='KEY=VALUE',
        help='override fields of the config, e.g. optim_wrapper.optimizer.lr=1e-3',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what training and testing share, for :func:`qbheat_mm.engine.launch.complete_config`."""
    parser.add_argument(
        '--work-dir', type=home_path, help='where logs and results go; default work_dirs/<name of the config>'
    )
    add_trust(parser)
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='load the weights that fit the model and name the others; without this, all must fit',
    )
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in the dataloaders')
    parser.add_argument('--no-persistent-workers', action='store_true', help='new workers each epoch')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser
