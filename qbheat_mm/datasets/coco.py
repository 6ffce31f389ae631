"""Annotation files in COCO's format: reading them, and writing them from other formats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmengine.fileio import load
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..checkpoint import atomic_write
from .image_folder import scan_images

ORIENTATION = 0x0112  # the EXIF tag; values from 5 swap width and height
ROUNDING = 0.01  # pixels by which a box may stick out without being counted as clipped


class AnnotationError(ValueError):
    """An annotation file that is missing, broken, or does not fit what is asked of it."""


def load_coco(ann_file: str | Path) -> dict:
    """Read an annotation file.

    Returns:
        Its content, with the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        AnnotationError: If there is no such file, it is not JSON, or lacks one of the lists.
    """
    try:
        content = json.loads(Path(ann_file).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise AnnotationError(
            f'There is no annotation file at "{ann_file}". Set data_root and ann_file of the dataset (the '
            'environment variable DATA_ROOT, where the config reads it).'
        ) from error
    except (OSError, ValueError) as error:  # ValueError: bad JSON, with its position, or bad UTF-8
        raise AnnotationError(f'"{ann_file}" cannot be read as JSON: {error}') from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(f'"{ann_file}" is not in COCO\'s format: it has no list "{key}".')
    return content


def read_classes(ann_file: str | Path, only: str | Sequence[str] = 'all') -> tuple[str, ...]:
    """The class names of a dataset, for a config: everything else follows from them.

    Args:
        ann_file: Annotations in COCO's format.
        only: Names to keep, a sequence or one text with commas, or ``'all'``.

    Returns:
        Names in the order of the file's categories, which is how MMDetection numbers its labels whatever the
        order of ``metainfo.classes``.

    Raises:
        AnnotationError: If the file cannot be read, or lacks a name in ``only``.
    """
    categories = load_coco(ann_file)['categories']
    names = tuple(category.get('name') if isinstance(category, dict) else None for category in categories)
    if unnamed := [i for i, name in enumerate(names) if not isinstance(name, str) or not name]:
        raise AnnotationError(f'"{ann_file}": categories number {", ".join(map(str, unnamed))} have no "name".')
    if only == 'all':
        return names
    wanted = [name.strip() for name in only.split(',')] if isinstance(only, str) else list(only)
    if unknown := [name for name in wanted if name not in names]:
        raise AnnotationError(
            f'"{ann_file}" has no category {", ".join(map(repr, unknown))}. It has: {", ".join(names)}.'
        )
    return tuple(name for name in names if name in wanted)


def parse_classes(text: str) -> list[str]:
    """Class names from a command line.

    Args:
        text: Names with commas between, or a file: one name per line, or YAML with ``names`` (a list, or a dict
            from index to name).

    Raises:
        AnnotationError: If there is no name, or one comes twice.
    """
    path = Path(text)
    if path.suffix in ('.yaml', '.yml'):
        names = load(path).get('names', [])
        names = [names[i] for i in sorted(names)] if isinstance(names, dict) else names
    else:
        names = path.read_text(encoding='utf-8').splitlines() if path.is_file() else text.split(',')
    names = [str(name).strip() for name in names if str(name).strip()]
    if not names:
        raise AnnotationError(f'"{text}" names no class.')
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise AnnotationError(f'"{text}" names {", ".join(repeated)} more than once.')
    return names


def find_images(folder: str | Path) -> dict[Path, Path]:
    """The images below a folder, by their relative path without extension, which annotations share.

    Raises:
        AnnotationError: If there is none, or two differ only in the extension.
    """
    folder, images = Path(folder), {}
    for path in scan_images(folder):
        key = path.relative_to(folder).with_suffix('')
        if key in images:
            raise AnnotationError(f'"{images[key]}" and "{path}" differ only in the extension; which is annotated?')
        images[key] = path
    if not images:
        raise AnnotationError(f'There is no image in "{folder}" (looked for {", ".join(IMG_EXTENSIONS)}).')
    return images


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a image as training reads it: upright according to EXIF.

    Raises:
        AnnotationError: If it cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return image.size[::-1] if turned else image.size
    except OSError as error:
        raise AnnotationError(f'"{path}" is not a readable image: {error}') from error


class CocoWriter:
    """Collects images and boxes, clips the boxes to their image, and counts what happens.

    Args:
        classes: Names of the categories; their ids are 1, 2, ... in this order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.content = dict(
            images=[],
            annotations=[],
            categories=[dict(id=i, name=name) for i, name in enumerate(self.classes, 1)],
        )
        self.counts = Counter({name: 0 for name in ('images', 'boxes read', 'boxes clipped', 'boxes written')})

    def add_image(self, file_name: str, width: int, height: int) -> None:
        """Add a image; the boxes that follow are in it."""
        self.counts['images'] += 1
        image = dict(id=len(self.content['images']) + 1, file_name=file_name, width=width, height=height)
        self.content['images'].append(image)

    def add_box(self, name: str, box: Sequence[float], crowd: bool = False) -> None:
        """Add a box to the last image, unless nothing of it lies inside or its class is not wanted.

        Args:
            name: The class.
            box: Corners x1, y1, x2, y2 in pixels of the image, whose own corners are 0, 0, width, height.
            crowd: Not a single object: neither to be found nor held against a detector.
        """
        self.counts['boxes read'] += 1
        if name not in self.classes:
            self.counts[f'boxes dropped, class "{name}" not asked for'] += 1
            return
        image = self.content['images'][-1]
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            self.counts['boxes dropped, empty'] += 1
            return
        left, right = max(x1, 0), min(x2, image['width'])
        top, bottom = max(y1, 0), min(y2, image['height'])
        if right <= left or bottom <= top:
            self.counts['boxes dropped, outside the image'] += 1
            return
        self.counts['boxes clipped'] += max(left - x1, top - y1, x2 - right, y2 - bottom) > ROUNDING
        self.counts['boxes written'] += 1
        width, height = right - left, bottom - top
        self.content['annotations'].append(
            dict(
                id=len(self.content['annotations']) + 1,  # pycocotools takes a match with id 0 for none
                image_id=image['id'],
                category_id=self.classes.index(name) + 1,
                bbox=[left, top, width, height],
                area=width * height,
                iscrowd=int(crowd),
            )
        )

    def write(self, out: str | Path) -> dict[str, int]:
        """Write the file atomically and print the counts.

        Returns:
            The counts.
        """
        out = Path(out)
        annotated = {annotation['image_id'] for annotation in self.content['annotations']}
        self.counts['images without boxes'] = len(self.content['images']) - len(annotated)
        atomic_write(out, json.dumps(self.content).encode())
        print(f'{out}: {len(self.classes)} classes ({", ".join(self.classes)})')
        for name, count in self.counts.items():
            print(f'{count:8d} {name}')
        return dict(self.counts)
