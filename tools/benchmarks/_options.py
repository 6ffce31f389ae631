"""The options that the benchmarks share. Imports nothing heavy, so that `--help` shows at once."""

from __future__ import annotations

import argparse
from pathlib import Path

ARCHITECTURES = ('26m', '52m', '96m', '151m', '214m', '285m', '294m', '508m')  # of Mobile-Former


def device(text: str) -> str:
    """Check the name of a device."""
    if text.partition(':')[0] not in ('cpu', 'cuda'):
        raise argparse.ArgumentTypeError(f'"{text}" is neither cpu nor cuda')
    return text


def parse_args(parser: argparse.ArgumentParser, argv: list[str] | None, rounds: int) -> argparse.Namespace:
    """Add the common options and parse."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--device', default='cpu', type=device)
    parser.add_argument('--rounds', type=int, default=rounds, help='over all alternatives; medians are shown')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')
    parser.add_argument('--cpu-time', action='store_true', help='processor time, for a busy machine without a GPU')
    parser.add_argument('--out', type=Path, help='a JSON file for the figures')
    args = parser.parse_args(argv)
    if args.cpu_time and (args.device != 'cpu' or getattr(args, 'workers', 0)):
        parser.error('--cpu-time is for --device cpu without workers, whose time it does not see')
    return args
