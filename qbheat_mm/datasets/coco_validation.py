"""Pre-flight validation of COCO datasets: annotations and images."""

from __future__ import annotations

import io
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from ..files import read_file
from ..text import join_names, printable
from .coco import AnnotationError, load_coco
from .transforms.loading import ORIENTATION, LoadImage, decode_image, open_image

# Large datasets contain a few such boxes; a larger share points to a mistake in the file.
MAX_THIN, MAX_OUT_OF_BOUNDS = 0.01, 0.1
ID, NUMBER = (int, str), (int, float)
TURNED = range(2, 9)  # EXIF orientations other than upright; 2, 3 and 4 keep width and height
SAME = 2.0  # mean difference of pixels, of 255, up to which two images are the same but for the decoder's rounding
CLIPPED = 16  # difference of the mean value, of 255, by which an image is loaded wrongly
MIN_AREA, LARGER_AREA = 1e-3, 1.1  # shares of the box between which the area of a mask in it can lie
MAX_VALUE = 1e12  # pixels
MAX_AREA = 1e10  # of the boxes that COCO AP counts
MAX_DETECTIONS = 100  # per image and class in COCO AP
MAX_ID = 2**53  # exact in floating point
FIELDS = dict(  # what mmdet or pycocotools reads without checking that it exists
    images=dict(id=ID, file_name=str, width=NUMBER, height=NUMBER),
    annotations=dict(id=ID, image_id=ID, category_id=ID, bbox=list, area=NUMBER, iscrowd=int),
    categories=dict(id=ID, name=str),
)


@dataclass
class Report:
    """Findings of a check. Errors stop a training; warnings and notes do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Report, where: str) -> None:
        """Take over the findings of another report, with their place."""
        for level, texts in vars(other).items():
            getattr(self, level).extend(f'{where}: {text}' for text in texts)

    def __str__(self) -> str:
        lines = [f'{level[:-1]}: {printable(text)}' for level, texts in vars(self).items() for text in texts]
        return '\n'.join(lines) or 'nothing found'


def _printable(name) -> str:
    name = printable(name)  # JSON can hold half a surrogate pair
    return name if len(name) <= 200 else f'{name[:200]}...'


def _finding(names: Iterable, text: str, total: int | None = None, limit: int = 5) -> list[str]:
    """A message with the number of names and the first of them; no message without names."""
    names = list(map(_printable, names))
    count = len(names) if total is None else f'{len(names)} of {total}'
    return [f'{count} {text}: {join_names(dict.fromkeys(names), limit)}'] if names else []


def _repeated(values: Iterable) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _fits(value, kind: type | tuple) -> bool:
    """Whether a field has the right type, and an id a value that NumPy keeps."""
    if isinstance(value, bool):
        return kind is int  # iscrowd
    if kind is ID and isinstance(value, int):
        return abs(value) < MAX_ID
    return isinstance(value, kind) and not (kind is ID and (not value or '\0' in value))


def _check_fields(coco: dict) -> list[str]:
    """Errors of entries that lack a field, or hold one of another type."""
    errors = []
    for section, fields in FIELDS.items():
        for name, kind in fields.items():
            bad = [i for i, e in enumerate(coco[section]) if not isinstance(e, dict) or not _fits(e.get(name), kind)]
            errors += _finding(bad, f'{section} have no usable field "{name}", at index', len(coco[section]))
    return errors


def _is_usable(value) -> bool:
    """Whether a value is a valid coordinate, size or area."""
    return isinstance(value, NUMBER) and abs(value) < MAX_VALUE  # False for NaN


def _is_area(value) -> bool:
    return _is_usable(value) and value <= MAX_AREA


def _is_box(bbox: list) -> bool:
    return len(bbox) == 4 and all(map(_is_usable, bbox)) and min(bbox[2:]) >= 0 and _is_area(bbox[2] * bbox[3])


def _check_values(coco: dict) -> list[str]:
    """Errors of sizes and boxes."""
    sizes = [(image['file_name'], (image['width'], image['height'])) for image in coco['images']]
    bad_sizes = [name for name, size in sizes if not all(_is_usable(side) and side > 0 for side in size)]
    bad_boxes = [a['id'] for a in coco['annotations'] if not (_is_box(a['bbox']) and _is_area(a['area']))]
    bad_crowds = [a['id'] for a in coco['annotations'] if a['iscrowd'] not in (0, 1)]
    return (
        _finding(bad_sizes, 'images have a width or height that is not positive')
        + _finding(bad_boxes, f'annotations have no bbox of x, y, width, height, or no area up to {MAX_AREA:g}; ids')
        + _finding(bad_crowds, 'annotations have an iscrowd other than 0 and 1; ids')
    )


def _check_ids(coco: dict, report: Report) -> None:
    for section in FIELDS:
        report.errors += _finding(_repeated(entry['id'] for entry in coco[section]), f'ids of {section} repeat')
    for key, section in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in coco[section]}
        unknown = (f'{a[key]} (annotation {a["id"]})' for a in coco['annotations'] if a[key] not in known)
        report.errors += _finding(unknown, f'annotations name an unknown {key}')
        text = (entry['id'] for entry in coco[section] if not isinstance(entry['id'], int))
        report.errors += _finding(text, f'ids of {section} are text; COCO AP wants whole numbers')
    # pycocotools stores the annotation id as the match of a detection, in floating point, where 0 means no match.
    unusable = (a['id'] for a in coco['annotations'] if not isinstance(a['id'], int) or a['id'] == 0)
    report.errors += _finding(unusable, 'ids of annotations are text or 0; number them from 1, in whole numbers')
    repeated = _repeated(image['file_name'] for image in coco['images'])
    report.warnings += _finding(repeated, 'images are listed more than once')


def _check_classes(coco: dict, classes: Sequence[str] | None, report: Report) -> None:
    names = [category['name'] for category in coco['categories']]
    report.errors += _finding(_repeated(names), 'category names repeat')
    if classes is None:
        return
    if isinstance(classes, str):
        report.errors.append(f'metainfo.classes is the string {classes!r}; one class is written ({classes!r},)')
        return
    report.errors += _finding(_repeated(classes), 'classes occur more than once in metainfo.classes')
    if missing := [repr(name) for name in classes if name not in names]:
        (text,) = _finding(missing, 'classes of the config are no categories of the file', len(classes))
        available = join_names((_printable(repr(name)) for name in names), 20)
        report.errors.append(f'{text}. The file has {available}. Set metainfo.classes')
    elif list(classes) != (ordered := [name for name in names if name in classes]):
        report.errors.append(
            "the classes of the config are in another order than the file's categories, by which mmdet numbers its "
            f'labels, so names would be mixed up: write {join_names((_printable(repr(name)) for name in ordered), 20)}'
        )
    surplus = [repr(name) for name in names if name not in classes]
    report.warnings += _finding(
        surplus, 'categories of the file are not in the config, their boxes are left out', len(names)
    )


def _check_boxes(coco: dict, classes: Sequence[str] | None, report: Report) -> None:
    """Check the boxes of the classes in use, as mmdet and pycocotools treat them."""
    images = {image['id']: image for image in coco['images']}
    names = {c['id']: c['name'] for c in coco['categories'] if classes is None or c['name'] in classes}
    used = [a for a in coco['annotations'] if a['category_id'] in names]
    kinds: dict[str, list[str]] = defaultdict(list)  # kind -> file names
    trained = set()
    for annotation in used:
        image = images[annotation['image_id']]
        x, y, w, h = annotation['bbox']
        if annotation.get('ignore'):
            kinds['ignored'].append(image['file_name'])
        if min(w, h) < 1 or annotation['area'] <= 0:
            kind = 'thin'
        elif x >= image['width'] or y >= image['height'] or x + w <= 0 or y + h <= 0:
            kind = 'outside'
        else:
            kind = 'crowd' if annotation['iscrowd'] else 'good'
            if kind == 'good' and not annotation.get('ignore'):
                trained.add(annotation['category_id'])
            if max(-x, -y, x + w - image['width'], y + h - image['height']) > 1:
                kinds['out of bounds'].append(image['file_name'])
            if not MIN_AREA * w * h <= annotation['area'] <= LARGER_AREA * w * h + 1:
                kinds['area'].append(f'{image["file_name"]} ({annotation["area"]:g}, box {w:g} x {h:g})')
            if min(w, h) <= 1:
                kinds['one pixel'].append(image['file_name'])
        kinds[kind].append(image['file_name'])

    def level(kind: str, share: float) -> list[str]:
        return report.errors if len(kinds[kind]) > share * len(used) else report.warnings

    if not trained:
        report.errors.append(f'no annotation to train on among {len(coco["annotations"])} in the file')
    for kind, texts, text in (
        (
            'ignored',
            report.errors,
            'have "ignore" set: mmdet leaves them out of training, but pycocotools counts them as missed; set iscrowd '
            'to 1 to ignore them in both, or remove "ignore"',
        ),
        ('outside', report.errors, 'lie outside their image (they must be in its pixels)'),
        ('thin', level('thin', MAX_THIN), 'are empty or thinner than a pixel: not trained on, but counted by COCO AP'),
        (
            'out of bounds',
            level('out of bounds', MAX_OUT_OF_BOUNDS),
            'exceed their image (bbox must be x, y, width, height)',
        ),
        (
            'area',
            report.warnings,
            'have an area that contradicts them, by which COCO AP sorts them into small, medium and large (it must be '
            'in pixels, at most width * height)',
        ),
        ('one pixel', report.notes, 'are one pixel thin'),
        ('crowd', report.notes, 'are crowds: ignored in training and evaluation'),
    ):
        texts += _finding(kinds[kind], f'boxes {text}', len(used))
    crowded = Counter((a['image_id'], a['category_id']) for a in used)
    many = [images[image]['file_name'] for (image, _), count in crowded.items() if count > MAX_DETECTIONS]
    report.warnings += _finding(
        many, f'times an image has more than {MAX_DETECTIONS} boxes of a class; AP counts so many'
    )
    annotated = {annotation['image_id'] for annotation in used}
    empty = [image['file_name'] for image in coco['images'] if image['id'] not in annotated]
    report.notes += _finding(empty, 'images have no boxes', len(images))
    never = [repr(name) for id_, name in names.items() if id_ not in trained]
    report.notes += _finding(never, 'classes never occur', len(names))


def _check_image(path: Path, image: dict, kinds: dict[str, list[str]], loader: BaseTransform) -> None:
    """Load an image as training does and sort what is unusual about it into ``kinds``."""
    name = image['file_name']
    try:
        content = read_file(path)
        with open_image(io.BytesIO(content)) as opened:
            mode, orientation = opened.mode, opened.getexif().get(ORIENTATION, 1)
            transparent = 'transparency' in opened.info
        decoded = decode_image(content)
        loaded = loader(dict(img_path=str(path)))['img']
    except Exception as error:  # Pillow raises errors of many types for malformed files
        kinds['unreadable'].append(f'{name} ({error})')
        return
    height, width = loaded.shape[:2]
    if (width, height) != (image['width'], image['height']):
        rotated = f', EXIF orientation {orientation}' if orientation in TURNED else ''
        if decoded.shape != loaded.shape:
            rotated += f', which {type(loader).__name__} does not apply'
        kinds['size'].append(f'{name} is {width} x {height}{rotated}, not {image["width"]} x {image["height"]}')
    elif orientation in TURNED:
        kinds['rotated' if _agree(loaded, decoded) else 'not rotated'].append(name)
    if mode.startswith('I') and abs(decoded.mean() - loaded.mean()) > CLIPPED:
        kinds['clipped'].append(name)
    elif mode in ('1', 'L', 'LA') or mode.startswith('I'):
        kinds['gray'].append(name)
    elif transparent or mode in ('RGBA', 'PA', 'CMYK'):
        kinds['four channels'].append(name)


def _agree(image: np.ndarray, other: np.ndarray) -> bool:
    """Whether two decoders, which differ by rounding, have turned an image alike."""
    return image.shape == other.shape and cv2.absdiff(image, other).mean() < SAME


def _check_images(coco: dict, img_dir: Path, sample: int, loader: BaseTransform, report: Report) -> None:
    paths = {img_dir / image['file_name']: image for image in coco['images']}
    # One listing of each folder is faster than a look-up of each file.
    folders = {path.parent for path in paths}
    listings = {folder: set(os.listdir(folder) if folder.is_dir() else ()) for folder in folders}
    if missing := [image['file_name'] for path, image in paths.items() if path.name not in listings[path.parent]]:
        report.errors += _finding(missing, f'images are not in "{img_dir}"', len(paths))
        return
    sampled = random.Random(0).sample(sorted(paths), min(sample, len(paths)))
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in sampled:
        _check_image(path, paths[path], kinds, loader)
    for kind, texts, text in (
        ('unreadable', report.errors, 'cannot be read'),
        ('size', report.errors, 'have another size on loading than the file says'),
        (
            'clipped',
            report.errors,
            f'have more than 8 bits, which {type(loader).__name__} clips to white; convert them to 8 bits',
        ),
        (
            'not rotated',
            report.warnings,
            f'are not rotated by their EXIF orientation in {type(loader).__name__}, but elsewhere; save them rotated',
        ),
        ('rotated', report.warnings, 'are rotated by EXIF on loading; the boxes must fit the rotated image'),
        ('gray', report.warnings, 'are gray; the channel is repeated'),
        ('four channels', report.warnings, 'have four channels; they are converted to three'),
    ):
        texts += _finding(kinds[kind], f'sampled images {text}', len(sampled))


def check_coco(
    ann_file: str | Path,
    img_dir: str | Path,
    classes: Sequence[str] | None = None,
    sample: int = 200,
    loader: BaseTransform | None = None,
) -> Report:
    """Check annotations in COCO format and their images.

    Args:
        ann_file: The annotations.
        img_dir: The folder that file names are relative to.
        classes: ``metainfo.classes`` of the config; None takes the file's categories.
        sample: Number of images to decode, the same ones each time; 0 for none. That all exist is checked in any case.
        loader: The transform that loads images in training; None takes ``LoadImage``.

    Returns:
        The findings; checks that depend on malformed parts are left out.
    """
    try:
        coco = load_coco(ann_file)
    except AnnotationError as error:
        return Report(errors=[str(error)])
    report = Report(errors=([] if coco['images'] else ['the annotation file lists no image']) + _check_fields(coco))
    if report.errors:
        return report
    report.errors += _check_values(coco)
    _check_ids(coco, report)
    _check_classes(coco, classes, report)
    if not report.errors:
        _check_boxes(coco, classes, report)
    _check_images(coco, Path(img_dir), sample, loader or LoadImage(ignore_empty=False), report)
    return report
