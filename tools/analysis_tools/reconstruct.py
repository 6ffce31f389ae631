"""Images in, images out: original, visible quarter, reconstruction.

python tools/analysis_tools/reconstruct.py CONFIG CHECKPOINT IMAGES... --out reconstruction.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qbheat_mm_cli import add_trust, config_file

PLACEMENTS = ('top_left', 'top_right', 'bottom_left', 'bottom_right', 'corner', 'center', 'random')  # of QuarterMask


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=config_file)
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+', help='image files, or one folder')
    add_trust(parser)
    parser.add_argument('--out', type=Path, default=Path('reconstruction.png'))
    parser.add_argument('--visible', choices=PLACEMENTS, default='top_left')
    parser.add_argument('--limit', type=int, default=16, help='images to draw at the most')
    parser.add_argument('--device', help='cuda, cpu, ...; the GPU where there is one')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from qbheat_mm.apis import QBHeatInferencer
from qbheat_mm.checkpoint import guard
from qbheat_mm.datasets.image_folder import list_images
from qbheat_mm.visualization import draw_reconstructions


def main() -> None:
    """Reconstruct and write."""
    args = parse_args()
    inferencer = QBHeatInferencer(args.config, guard(args.checkpoint, args.trust_checkpoint), args.device)
    images = list_images(args.images if len(args.images) > 1 else args.images[0])
    results = inferencer.reconstruct(images[: args.limit], visible=args.visible)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_reconstructions(results, rows=min(len(results), 8)).save(args.out)
    print(f'wrote {args.out}: {len(results)} of {len(images)} images')


if __name__ == '__main__':
    main()
