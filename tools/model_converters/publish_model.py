"""Publish a checkpoint: the backbone's weights alone, as plain tensors.

    python tools/model_converters/publish_model.py work_dirs/.../epoch_200.pth qbheat_mobile-former-294m.pth

writes qbheat_mobile-former-294m-<first 8 digits of the file's sha256>.pth, or safetensors where the name ends so. The
keys keep the prefix "backbone.", so configs take the file in place of the checkpoint. Optimizer, log curves and config
text are left out; metadata are plain values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qbheat_mm_cli import add_trust


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='the checkpoint')
    parser.add_argument('out', help='the file to write, .pth or .safetensors; the hash is added to its name')
    parser.add_argument('--whole', action='store_true', help='the whole model, not the backbone alone')
    parser.add_argument('--half', action='store_true', help='in float16')
    add_trust(parser)
    return parser.parse_args(argv)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from qbheat_mm.checkpoint import CheckpointError, guard
from qbheat_mm.checkpoint.publishing import publish


def main(argv: Sequence[str] | None = None) -> None:
    """Publish as the command line says."""
    args = parse_args(argv)
    try:
        path = publish(guard(args.checkpoint, args.trust_checkpoint), args.out, args.whole, args.half)
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
