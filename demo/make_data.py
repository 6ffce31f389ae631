"""Cut the photographs that scikit-image bundles into small datasets: real images without a network.

    python demo/make_data.py OUT

writes OUT/train and OUT/val (a folder of crops per photograph, from disjoint regions) and OUT/detection (cut-outs of
some photographs on others, with boxes in COCO's format).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

PHOTOS = (
    'astronaut',
    'chelsea',
    'coffee',
    'hubble_deep_field',
    'immunohistochemistry',
    'retina',
    'rocket',
    'stereo_motorcycle',
)
OBJECTS = ('astronaut', 'chelsea', 'coffee', 'stereo_motorcycle')
BACKGROUNDS = ('hubble_deep_field', 'immunohistochemistry', 'retina', 'rocket')
TILES = 3  # a photograph is cut into 3 x 3 tiles, and a crop never leaves its tile
TILE_SIZE = 144
# One tile of each row and column is for validation.
VAL_TILES = ((0, 1), (1, 0), (2, 2))


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
    """A square out of a random tile, its side within ``sides``, resized to ``size`` and perhaps mirrored."""
    tile = tiles[rng.integers(len(tiles))]
    side = int(rng.integers(sides[0], min(sides[1], *tile.size) + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in tile.size)
    crop = tile.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def equalize_color(crop: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Give a crop the same mean color, up to some noise, and about the same contrast as every other.

    Otherwise the mean color alone would tell most photographs apart, and a probe would measure no more than that.
    The noise drowns what clipping leaves of the difference.
    """
    pixels = np.asarray(crop, np.float32)
    pixels = pixels - pixels.mean((0, 1))
    spread = max(pixels.std(), 1.0)
    pixels *= min(rng.uniform(35, 50) / spread, 2.5)
    return Image.fromarray(np.clip(pixels + 120 + rng.uniform(-10, 10, 3), 0, 255).astype(np.uint8))


def write_crops(out: Path, counts: dict[str, int], size: int, rng: np.random.Generator) -> None:
    """``counts[split]`` crops of every photograph to ``out/<split>/<photograph>/``."""
    for name in PHOTOS:
        tiles = load_tiles(name)
        for split, count in counts.items():
            folder = out / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                crop = random_crop(tiles[split], (96, TILE_SIZE), size, rng)
                equalize_color(crop, rng).save(folder / f'{i:04d}.jpg', quality=92)


def paste_object(
    image: Image.Image, taken: list[list[int]], crop: Image.Image, rng: np.random.Generator
) -> list[int] | None:
    """Paste a round cut-out where it overlaps none of ``taken``; its box x, y, w, h, or None where none fits."""
    for _ in range(20):
        left, top = (int(rng.integers(length - crop.width + 1)) for length in image.size)
        clear = all(
            left + crop.width <= x or x + w <= left or top + crop.height <= y or y + h <= top for x, y, w, h in taken
        )
        if clear:
            mask = Image.new('L', crop.size)
            ImageDraw.Draw(mask).ellipse((0, 0, crop.width - 1, crop.height - 1), fill=255)
            image.paste(crop, (left, top), mask)
            return [left, top, crop.width, crop.height]
    return None


def write_detection(out: Path, counts: dict[str, int], size: int, rng: np.random.Generator) -> None:
    """``counts[split]`` images with one to three objects to ``out/images``, and ``out/annotations``."""
    tiles = {name: load_tiles(name) for name in PHOTOS}
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(OBJECTS)]
    for folder in ('images', 'annotations'):
        (out / folder).mkdir(parents=True)
    for split, count in counts.items():
        images, annotations = [], []
        for i in range(count):
            background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
            image = random_crop(tiles[background][split], (96, TILE_SIZE), size, rng)
            boxes: list[list[int]] = []
            for _ in range(rng.integers(1, 4)):
                category = categories[rng.integers(len(categories))]
                side = int(rng.integers(size // 4, size // 2 + 1))
                crop = random_crop(tiles[category['name']][split], (96, TILE_SIZE), side, rng)
                box = paste_object(image, boxes, crop, rng)
                if box is None:
                    continue
                boxes.append(box)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i + 1,
                        category_id=category['id'],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
            name = f'{split}_{i:04d}.jpg'
            image.save(out / 'images' / name, quality=92)
            images.append(dict(id=i + 1, file_name=name, width=size, height=size))
        content = dict(images=images, annotations=annotations, categories=categories)
        (out / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def make_demo_data(out: Path, seed: int = 0) -> None:
    """Write all of it, to a temporary folder first, so that an interrupted call leaves nothing that looks whole."""
    if out.exists():
        raise FileExistsError(f'"{out}" exists; name another folder or remove it.')
    rng = np.random.default_rng(seed)
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    write_crops(partial, dict(train=240, val=60), size=128, rng=rng)
    write_detection(partial / 'detection', dict(train=400, val=80), size=160, rng=rng)
    partial.rename(out)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder to write, which must not exist')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    make_demo_data(args.out, args.seed)
    print(f'wrote {args.out}: {len(PHOTOS)} photographs as classes, {len(OBJECTS)} as objects to detect')


if __name__ == '__main__':
    main()
