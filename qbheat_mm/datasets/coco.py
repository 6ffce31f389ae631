"""Annotation files in COCO format: reading, and writing from other formats."""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..checkpoint import atomic_write
from ..files import describe_content, open_file, read_file
from ..text import join_names, printable
from .image_folder import scan_images
from .transforms.loading import is_transposed, open_image

MAX_CLASSES_BYTES = 2**20
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ROUNDING = 0.01  # tolerance in pixels below which a box is not counted as clipped


class AnnotationError(ValueError):
    """An annotation file that is missing, malformed, or lacks what the caller asks for; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def read_text(path: str | Path, limit: int | None = None) -> str:
    """The text of a file of at most ``limit`` bytes.

    Raises:
        AnnotationError: If it cannot be read, is larger, is no text, or is neither UTF-8 nor UTF-16 with its byte order
            mark.
    """
    try:
        content = read_file(path, limit)
        if content and (reason := describe_content(content)):
            raise AnnotationError(f'{path}: {reason}')
        return content.decode('utf-16' if content.startswith(UTF16) else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise AnnotationError(f'{path}: not a text file in UTF-8 ({error}); save it as UTF-8') from error
    except OSError as error:
        raise AnnotationError(f'{path}: cannot be read ({error.strerror})') from error


def load_coco(ann_file: str | Path) -> dict:
    """Read an annotation file.

    Returns:
        Its content, with the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        AnnotationError: If the file is missing, is not JSON in UTF-8, or lacks one of the lists.
    """
    data = b''
    try:
        data = read_file(ann_file)
        content = json.loads(data)
    except FileNotFoundError as error:
        raise AnnotationError(
            f'There is no annotation file at "{ann_file}". Set data_root and ann_file of the dataset (the '
            'environment variable DATA_ROOT, where the config reads it).'
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: bad JSON, with its position, or bad UTF-8
        reason = describe_content(data) if data else ''
        if isinstance(error, UnicodeDecodeError):
            reason = f'{error}; save it as UTF-8'
        raise AnnotationError(f'"{ann_file}" cannot be read as JSON: {reason or error}') from error
    if (encoding := json.detect_encoding(data)) != 'utf-8':
        name = 'UTF-8 with a byte order mark' if encoding == 'utf-8-sig' else encoding.upper()
        raise AnnotationError(f'"{ann_file}" is {name}, which pycocotools does not read; save it as UTF-8 without one.')
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(f'"{ann_file}" is not in COCO\'s format: it has no list "{key}".')
    return content


def read_classes(ann_file: str | Path, only: str | Sequence[str] = 'all') -> tuple[str, ...]:
    """Class names of an annotation file, for use in a config.

    Args:
        ann_file: Annotations in COCO format.
        only: Names to keep, a sequence or a comma-separated string, or ``'all'``.

    Returns:
        Names in the order of the file's categories: MMDetection numbers labels in this order, whatever the order of
        ``metainfo.classes``.

    Raises:
        AnnotationError: If the file cannot be read, or lacks a name in ``only``.
    """
    categories = load_coco(ann_file)['categories']
    names = tuple(category.get('name') if isinstance(category, dict) else None for category in categories)
    if unnamed := [i for i, name in enumerate(names) if not isinstance(name, str) or not name]:
        raise AnnotationError(f'"{ann_file}": categories number {join_names(unnamed, 20)} have no "name".')
    if only == 'all':
        return names
    wanted = [name.strip() for name in only.split(',')] if isinstance(only, str) else list(only)
    if unknown := [repr(name) for name in wanted if name not in names]:
        raise AnnotationError(f'"{ann_file}" has no category {", ".join(unknown)}. It has: {", ".join(names)}.')
    return tuple(name for name in names if name in wanted)


def parse_classes(text: str) -> list[str]:
    """Class names from a command line.

    Args:
        text: Comma-separated names, or a file: one name per line, or YAML with ``names`` (a list, or a dict from 0, 1,
            ... to names). YAML's tags and aliases are refused, so nothing in the file is executed or multiplied.

    Raises:
        AnnotationError: If the file is no such list, there is no name, or one is empty or repeated.
    """
    if text.endswith(('.yaml', '.yml')) or (os.path.exists(text) and not os.path.isdir(text)):
        content = read_text(text, MAX_CLASSES_BYTES)
        names = _yaml_names(text, content) if text.endswith(('.yaml', '.yml')) else content.splitlines()
    else:
        names = text.split(',')
    names = [str(name).strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise AnnotationError(f'"{text}" names no class.')
    if '' in names:
        raise AnnotationError(f'"{text}": name number {names.index("") + 1} is empty; the position is the class index.')
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise AnnotationError(f'"{text}" names {join_names(repeated)} more than once.')
    return names


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags and aliases."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError('it has aliases')
        return super().compose_node(parent, index)


def _yaml_names(path: str, text: str) -> list[str | int]:
    """``names`` of a YAML file."""
    try:
        content = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AnnotationError(f'"{path}" cannot be read as plain YAML: {error}') from error
    names = content.get('names') if isinstance(content, dict) else None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise AnnotationError(f'"{path}": the indices of "names" are not 0, 1, ..., {len(names) - 1}.')
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise AnnotationError(f'"{path}" has no "names" that are a list, or a dict from index to name.')
    for i, name in enumerate(names):
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise AnnotationError(
                f'"{path}": name number {i + 1} is {type(name).__name__}, not text; write it in quotes.'
            )
    return names


def index_images(folder: str | Path) -> dict[Path, Path]:
    """Images below a folder by their relative path without the extension, which annotation files share.

    Raises:
        AnnotationError: If there is none, or two differ only in the extension.
    """
    images = {}
    for path in scan_images(folder):
        key = path.relative_to(folder).with_suffix('')
        if key in images:
            raise AnnotationError(f'"{images[key]}" and "{path}" differ only in the extension; which is annotated?')
        images[key] = path
    if not images:
        raise AnnotationError(f'There is no image in "{folder}" (looked for {", ".join(IMG_EXTENSIONS)}).')
    return images


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as it is loaded: rotated by its EXIF orientation.

    Raises:
        AnnotationError: If it is no image.
    """
    try:
        with open_file(path) as file, open_image(file) as image:
            return image.size[::-1] if is_transposed(image) else image.size
    except Exception as error:  # Pillow raises errors of many types for malformed files
        raise AnnotationError(f'"{path}" is not a readable image: {error}') from error


class CocoWriter:
    """Collect images and boxes, clip the boxes to their image, and count the result.

    Args:
        classes: Names of the categories; their ids are 1, 2, ... in this order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.images, self.annotations = [], []
        self.counts = Counter({name: 0 for name in ('images', 'boxes read', 'boxes clipped', 'boxes written')})

    def add_image(self, file_name: str, width: int, height: int) -> None:
        """Add an image; the boxes added next belong to it."""
        self.counts['images'] += 1
        self.images.append(dict(id=len(self.images) + 1, file_name=file_name, width=width, height=height))

    def add_box(self, name: str, box: Sequence[float], crowd: bool = False) -> None:
        """Add a box to the last image, unless it lies outside or its class is not requested.

        Args:
            name: The class.
            box: Corners x1, y1, x2, y2 in pixels; the image spans 0, 0, width, height.
            crowd: Set ``iscrowd``: the box is ignored in training and evaluation.
        """
        self.counts['boxes read'] += 1
        if name not in self.classes:
            self.counts[f'boxes dropped, class "{name}" not asked for'] += 1
            return
        image = self.images[-1]
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
        self.annotations.append(
            dict(
                id=len(self.annotations) + 1,  # from 1: pycocotools treats a match with id 0 as no match
                image_id=image['id'],
                category_id=self.classes.index(name) + 1,
                bbox=[left, top, width, height],
                area=width * height,
                iscrowd=int(crowd),
            )
        )

    def write(self, out: str | Path) -> dict[str, int]:
        """Write the new file ``out`` atomically and print the counts.

        Returns:
            The counts.

        Raises:
            FileExistsError: If ``out`` exists.
        """
        annotated = {annotation['image_id'] for annotation in self.annotations}
        self.counts['images without boxes'] = len(self.images) - len(annotated)
        categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, 1)]
        content = dict(images=self.images, annotations=self.annotations, categories=categories)
        atomic_write(out, json.dumps(content).encode(), replace=False)
        print(printable(f'{out}: {len(self.classes)} classes ({", ".join(self.classes)})'))
        for name, count in self.counts.items():
            print(f'{count:8d} {printable(name)}')
        return dict(self.counts)
