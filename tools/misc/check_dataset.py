"""Pre-flight validation of the COCO datasets of a config, or of an annotation file. Exits with 1 on errors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qbheat_mm_cli import add_cfg_options


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', help='a config (.py), or annotations in COCO format (.json)')
    parser.add_argument('--images', metavar='DIR', help='with annotations: the folder of the images')
    parser.add_argument('--classes', metavar='NAMES', help='with annotations: a,b,c or a file of names')
    parser.add_argument('--sample', type=int, default=200, help='number of images of each dataset to decode')
    add_cfg_options(parser)
    args = parser.parse_args()
    if not args.target.endswith('.json'):
        if not Path(args.target).is_file():
            parser.error(f'there is no config file "{args.target}"')
    elif not args.images:
        parser.error('annotations need --images, the folder of their images')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from mmengine.config import Config

from qbheat_mm.datasets.coco import parse_classes
from qbheat_mm.datasets.coco_validation import check_coco
from qbheat_mm.datasets.config_validation import check_config
from qbheat_mm.engine.launch import merge_options


def main() -> None:
    """Check and print."""
    args = parse_args()
    if args.target.endswith('.json'):
        classes = parse_classes(args.classes) if args.classes else None
        report = check_coco(args.target, args.images, classes, args.sample)
    else:
        cfg = Config.fromfile(args.target)
        merge_options(cfg, args.cfg_options)
        report = check_config(cfg, sample=args.sample)
    print(report)
    sys.exit(bool(report.errors))


if __name__ == '__main__':
    main()
