"""Check the detection data of a config, or an annotation file, before training on it. Exits with 1 on errors."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import Config, DictAction

from qbheat_mm.datasets.coco import parse_classes
from qbheat_mm.datasets.coco_validation import check_coco
from qbheat_mm.datasets.config_validation import check_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', help="a config (.py), or annotations in COCO's format (.json)")
    parser.add_argument('--images', metavar='DIR', help='with annotations: the folder of the images')
    parser.add_argument('--classes', metavar='NAMES', help='with annotations: a,b,c or a file of names')
    parser.add_argument('--sample', type=int, default=200, help='how many images of a dataset to decode')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.target.endswith('.json') and not args.images:
        parser.error('annotations need --images, the folder of their images')
    return args


def main() -> None:
    """Check and print."""
    args = parse_args()
    if args.target.endswith('.json'):
        classes = parse_classes(args.classes) if args.classes else None
        report = check_coco(args.target, args.images, classes, args.sample)
    else:
        cfg = Config.fromfile(args.target)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        report = check_config(cfg, sample=args.sample)
    print(report)
    sys.exit(bool(report.errors))


if __name__ == '__main__':
    main()
