"""Decode the images of a folder once and pack them into one file, from which training reads several times faster.

    python tools/dataset_converters/pack_images.py SOURCE OUT [--size 256] [--workers 8]
    python tools/dataset_converters/pack_images.py OUT --verify

SOURCE has class folders, or images at any depth. Images are rotated by their EXIF orientation, larger ones reduced to
the shorter side --size in px. An interrupted run continues with the same command. Then, in any config, the type
PackedImageDataset takes the place of ImageFolderDataset, CustomDataset or ImageNet:

    DATA_ROOT=PACKS python tools/train.py CONFIG --cfg-options train_dataloader.dataset.type=PackedImageDataset
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='a folder of images; with --verify, of packed ones')
    parser.add_argument('out', type=Path, nargs='?', help='folder to write, which must not exist')
    parser.add_argument('--size', type=int, default=256, help='shorter side in px; 0 keeps all sizes (%(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='threads that decode (%(default)s)')
    parser.add_argument('--verify', action='store_true', help='compare every image with its checksum')
    args = parser.parse_args(arguments)
    if args.verify == bool(args.out):
        parser.error('name SOURCE and OUT to pack, or OUT alone with --verify')
    if args.size < 0 or args.workers < 1:
        parser.error('--size must be 0 or more, --workers 1 or more')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from qbheat_mm.datasets.packed import Pack, PackError
from qbheat_mm.datasets.packing import pack_images
from qbheat_mm.text import join_names, printable


def verify(folder: Path) -> None:
    """Compare every image with its checksum."""
    pack = Pack(folder)
    if damaged := list(pack.damaged()):
        raise PackError(f'{len(damaged)} of {len(pack)} images in "{folder}" are damaged: {join_names(damaged)}.')
    print(f'{folder}: {len(pack)} images are as they were written')


def report(pack: Pack) -> None:
    """Print what was packed, and what could not be read."""
    classes = f'{len(pack.classes)} classes' if pack.classes else 'no classes'
    print(f'wrote {pack.folder}: {len(pack)} images, {classes}, {pack.path.stat().st_size / 1e9:.2f} GB')
    if pack.unreadable:
        print(f'{len(pack.unreadable)} images could not be read and were left out:')
        for name, reason in pack.unreadable.items():
            print(f'  {printable(name)}: {printable(reason)}')


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack or verify as the command line says."""
    args = parse_args(arguments)
    try:
        if args.verify:
            verify(args.source)
        else:
            report(pack_images(args.source, args.out, args.size or None, args.workers))
    except KeyboardInterrupt:
        sys.exit('pack_images: interrupted; the same command continues it')
    except (PackError, OSError, RuntimeError) as error:
        sys.exit(f'pack_images: {error}')


if __name__ == '__main__':
    main()
