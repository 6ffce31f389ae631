"""Make small datasets of real images from the photographs bundled with scikit-image, without a download.

    python demo/make_data.py OUT

OUT/train and OUT/val have a folder of crops per photograph, from disjoint regions. OUT/detection has cut-outs of some
photographs pasted on others, with boxes in COCO's format.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder to write, which must not exist')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from qbheat_mm.checkpoint import atomic_dir

OBJECTS = ('astronaut', 'chelsea', 'coffee', 'stereo_motorcycle')
BACKGROUNDS = ('hubble_deep_field', 'immunohistochemistry', 'retina', 'rocket')
PHOTOS = tuple(sorted(OBJECTS + BACKGROUNDS))
TILES = 3  # a photograph is cut into 3 x 3 tiles, and each crop lies in one tile
TILE_SIZE = 144
VAL_TILES = ((0, 1), (1, 0), (2, 2))  # one tile of each row and column is for validation


def load_tiles(name: str) -> dict[str, list[Image.Image]]:
    """The tiles of a photograph, as ``{'train': [...], 'val': [...]}``."""
    array = getattr(data, name)()
    photo = Image.fromarray(array[0] if isinstance(array, tuple) else array).convert('RGB')
    side = TILES * TILE_SIZE
    scale = side / min(photo.size)
    photo = photo.resize([max(side, round(length * scale)) for length in photo.size], Image.Resampling.LANCZOS)
    width, height = (length / TILES for length in photo.size)
    tiles = {'train': [], 'val': []}
    for row in range(TILES):
        for column in range(TILES):
            box = (round(column * width), round(row * height), round((column + 1) * width), round((row + 1) * height))
            tiles['val' if (row, column) in VAL_TILES else 'train'].append(photo.crop(box))
    return tiles


def random_crop(tiles: list[Image.Image], sides: tuple[int, int], size: int, rng: np.random.Generator) -> Image.Image:
    """A square crop of a random tile, with a side within ``sides``, resized to ``size`` and randomly flipped."""
    tile = tiles[rng.integers(len(tiles))]
    side = int(rng.integers(sides[0], min(sides[1], *tile.size) + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in tile.size)
    crop = tile.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def equalize_color(crop: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Give all crops about the same contrast and, except for noise, the same mean color.

    Otherwise a probe could classify most photographs by their mean color. The noise hides the remaining differences,
    which are due to clipping.
    """
    pixels = np.asarray(crop, np.float32)
    pixels = pixels - pixels.mean((0, 1))
    spread = max(pixels.std(), 1.0)
    pixels *= min(rng.uniform(35, 50) / spread, 2.5)
    return Image.fromarray(np.clip(pixels + 120 + rng.uniform(-10, 10, 3), 0, 255).astype(np.uint8))


def write_crops(out: Path, counts: dict[str, int], size: int, rng: np.random.Generator) -> None:
    """Write ``counts[split]`` crops of every photograph to ``out/<split>/<photograph>/``."""
    for name in PHOTOS:
        tiles = load_tiles(name)
        for split, count in counts.items():
            folder = out / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                crop = random_crop(tiles[split], (96, TILE_SIZE), size, rng)
                equalize_color(crop, rng).save(folder / f'{i:04d}.jpg', quality=92)


def paste_object(image: Image.Image, taken: list, crop: Image.Image, rng: np.random.Generator) -> list[int] | None:
    """Paste a round cut-out where it overlaps none of the boxes ``taken``; return its box x, y, w, h, or None."""
    for _ in range(20):
        left, top = (int(rng.integers(length - crop.width + 1)) for length in image.size)
        if all(
            left + crop.width <= x or x + w <= left or top + crop.height <= y or y + h <= top for x, y, w, h in taken
        ):
            mask = Image.new('L', crop.size)
            ImageDraw.Draw(mask).ellipse((0, 0, crop.width - 1, crop.height - 1), fill=255)
            image.paste(crop, (left, top), mask)
            return [left, top, crop.width, crop.height]
    return None


def write_detection(out: Path, counts: dict[str, int], size: int, rng: np.random.Generator) -> None:
    """Write ``counts[split]`` images with one to three objects to ``out/images``, and ``out/annotations``."""
    tiles = {name: load_tiles(name) for name in PHOTOS}
    for folder in ('images', 'annotations'):
        (out / folder).mkdir(parents=True)
    for split, count in counts.items():
        content = dict(images=[], annotations=[], categories=[dict(id=i, name=n) for i, n in enumerate(OBJECTS, 1)])
        for i in range(count):
            background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
            image = random_crop(tiles[background][split], (96, TILE_SIZE), size, rng)
            boxes: list[list[int]] = []
            for _ in range(rng.integers(1, 4)):
                category = content['categories'][rng.integers(len(OBJECTS))]
                side = int(rng.integers(size // 4, size // 2 + 1))
                crop = random_crop(tiles[category['name']][split], (96, TILE_SIZE), side, rng)
                if box := paste_object(image, boxes, crop, rng):
                    boxes.append(box)
                    annotation = dict(id=len(content['annotations']) + 1, image_id=i + 1, category_id=category['id'])
                    content['annotations'].append(annotation | dict(bbox=box, area=box[2] * box[3], iscrowd=0))
            name = f'{split}_{i:04d}.jpg'
            image.save(out / 'images' / name, quality=92)
            content['images'].append(dict(id=i + 1, file_name=name, width=size, height=size))
        (out / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def make_demo_data(out: Path) -> None:
    """Write everything to the new folder ``out`` atomically.

    Raises:
        FileExistsError: If ``out`` exists.
    """
    rng = np.random.default_rng(0)
    with atomic_dir(out) as folder:
        write_crops(folder, dict(train=240, val=60), size=128, rng=rng)
        write_detection(folder / 'detection', dict(train=400, val=80), size=160, rng=rng)


def main() -> None:
    """Write the data."""
    out = parse_args().out
    try:
        make_demo_data(out)
    except OSError as error:
        sys.exit(f'make_data: {error}')
    print(f'wrote {out}: {len(PHOTOS)} photographs as classes, {len(OBJECTS)} as objects to detect')


if __name__ == '__main__':
    main()
