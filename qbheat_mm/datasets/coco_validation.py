"""Pre-flight validation of COCO datasets: errors that stop a training, and silent ones that spoil it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..text import join_names
from .coco import ORIENTATION, AnnotationError, load_coco, read_size

# Large sets hold a few such boxes; more than this share of them is a mistake in the file.
MANY_THIN, MANY_STICKING_OUT = 0.01, 0.1
ID, NUMBER = (int, str), (int, float)
LARGEST = 1e12  # pixels, the area of a image included
FIELDS = dict(  # what mmdet or pycocotools reads without asking whether it is there
    images=dict(id=ID, file_name=str, width=NUMBER, height=NUMBER),
    annotations=dict(id=ID, image_id=ID, category_id=ID, bbox=list, area=NUMBER, iscrowd=int),
    categories=dict(id=ID, name=str),
)


@dataclass
class Report:
    """What a check found. Errors stop a training; warnings and notes do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Report, where: str) -> None:
        """Take over what another report found, saying where."""
        for mine, theirs in zip(
            (self.errors, self.warnings, self.notes), (other.errors, other.warnings, other.notes), strict=True
        ):
            mine.extend(f'{where}: {text}' for text in theirs)

    def __str__(self) -> str:
        kinds = dict(error=self.errors, warning=self.warnings, note=self.notes)
        return '\n'.join(f'{kind}: {text}' for kind, texts in kinds.items() for text in texts) or 'nothing found'


def _some(names: Iterable, limit: int = 5) -> str:
    """Some of the names, each printable and of limited length; JSON can hold half a surrogate pair."""
    printable = (str(name).encode('utf-8', 'replace').decode() for name in names)
    return join_names((name if len(name) <= 200 else name[:200] + '...' for name in printable), limit)


def _repeated(values: Iterable) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_fields(coco: dict, report: Report) -> None:
    for section, fields in FIELDS.items():
        entries = coco[section]
        for name, kind in fields.items():
            bad = [i for i, e in enumerate(entries) if not isinstance(e, dict) or not isinstance(e.get(name), kind)]
            if bad:
                report.errors.append(
                    f'{len(bad)} of {len(entries)} {section} have no usable field "{name}": number {_some(bad)}'
                )


def _is_usable(value) -> bool:
    """Whether a value can be a place or a size in a image, or its area."""
    return isinstance(value, NUMBER) and abs(value) < LARGEST  # false for NaN


def _is_box(bbox: list) -> bool:
    return len(bbox) == 4 and all(map(_is_usable, bbox)) and min(bbox[2:]) >= 0


def _check_values(coco: dict, report: Report) -> None:
    """Sizes and boxes must make sense."""
    if bad := [
        image['file_name']
        for image in coco['images']
        if not all(_is_usable(image[side]) and image[side] > 0 for side in ('width', 'height'))
    ]:
        report.errors.append(f'width or height of {len(bad)} images is not positive: {_some(bad)}')
    if bad := [a['id'] for a in coco['annotations'] if not (_is_box(a['bbox']) and _is_usable(a['area']))]:
        report.errors.append(
            f'{len(bad)} annotations have no bbox of x, y, width, height, or no number as area: annotation {_some(bad)}'
        )


def _check_ids(coco: dict, report: Report) -> None:
    for section in FIELDS:
        if repeated := _repeated(entry['id'] for entry in coco[section]):
            report.errors.append(f'{len(repeated)} ids of {section} repeat: {_some(repeated)}')
    images, categories = ({entry['id'] for entry in coco[section]} for section in ('images', 'categories'))
    for key, known in (('image_id', images), ('category_id', categories)):
        if unknown := [a for a in coco['annotations'] if a[key] not in known]:
            report.errors.append(
                f'{len(unknown)} annotations name an unknown {key}: '
                + _some(f'{a[key]} (annotation {a["id"]})' for a in unknown)
            )
    if any(a['id'] == 0 for a in coco['annotations']):
        report.warnings.append('an annotation has the id 0: pycocotools takes a match with it for none; count from 1')
    if repeated := _repeated(image['file_name'] for image in coco['images']):
        report.warnings.append(f'{len(repeated)} images are listed more than once: {_some(repeated)}')


def _check_classes(coco: dict, classes: Sequence[str] | None, report: Report) -> None:
    names = [category['name'] for category in coco['categories']]
    if repeated := _repeated(names):
        report.errors.append(f'category names repeat: {_some(repeated)}')
    if classes is None:
        return
    if isinstance(classes, str):
        report.errors.append(f'metainfo.classes is the text {classes!r}; one class is written ({classes!r},)')
        return
    if repeated := _repeated(classes):
        report.errors.append(f'metainfo.classes names {_some(repeated)} more than once')
    if missing := [name for name in classes if name not in names]:
        report.errors.append(
            f'{len(missing)} of {len(classes)} classes of the config are no categories of the file: '
            f'{_some(map(repr, missing))}. The file has {_some(map(repr, names), 20)}. Set metainfo.classes'
        )
    elif list(classes) != (ordered := [name for name in names if name in classes]):
        report.errors.append(
            "the classes of the config are in another order than the file's categories, by which mmdet numbers its "
            f'labels, so names would be mixed up: write {_some(map(repr, ordered), 20)}'
        )
    if surplus := [name for name in names if name not in classes]:
        report.warnings.append(
            f'{len(surplus)} of {len(names)} categories of the file are not in the config, their boxes are left out: '
            + _some(map(repr, surplus))
        )


def _check_boxes(coco: dict, classes: Sequence[str] | None, report: Report) -> None:
    """Look at the boxes of the classes in use, as mmdet and pycocotools will treat them."""
    images = {image['id']: image for image in coco['images']}
    names = {c['id']: c['name'] for c in coco['categories'] if classes is None or c['name'] in classes}
    kinds: dict[str, list[str]] = defaultdict(list)  # kind -> names of images
    used = [a for a in coco['annotations'] if a['category_id'] in names]
    trained = Counter()
    for annotation in used:
        image = images[annotation['image_id']]
        x, y, w, h = annotation['bbox']
        right, bottom = x + w - image['width'], y + h - image['height']  # how far it sticks out there
        if min(w, h) < 1 or annotation['area'] <= 0:
            kind = 'thin'
        elif x >= image['width'] or y >= image['height'] or x + w <= 0 or y + h <= 0:
            kind = 'outside'
        else:
            kind = 'crowd' if annotation['iscrowd'] else 'good'
            trained[annotation['category_id']] += kind == 'good'
            if max(-x, -y, right, bottom) > 1:
                kinds['sticking out'].append(image['file_name'])
            if min(w, h) <= 1:
                kinds['one pixel'].append(image['file_name'])
        kinds[kind].append(image['file_name'])

    def describe(kind: str) -> str:
        return f'{len(kinds[kind])} of {len(used)} boxes, in {_some(dict.fromkeys(kinds[kind]))},'

    if not kinds['good']:
        report.errors.append(f'no annotation to train on or to find among {len(coco["annotations"])} in the file')
    if kinds['outside']:
        report.errors.append(f'{describe("outside")} lie outside their image; pixels, and of this very image?')
    if kinds['thin']:
        level = report.errors if len(kinds['thin']) > MANY_THIN * len(used) else report.warnings
        level.append(f'{describe("thin")} are empty or thinner than a pixel: not trained on, but counted by COCO AP')
    if kinds['sticking out']:
        level = report.errors if len(kinds['sticking out']) > MANY_STICKING_OUT * len(used) else report.warnings
        level.append(f'{describe("sticking out")} stick out of their image; is bbox x, y, width, height?')
    if kinds['one pixel']:
        report.notes.append(f'{describe("one pixel")} are one pixel thin')
    if kinds['crowd']:
        report.notes.append(f'{describe("crowd")} are crowds: not trained on, and not held against a detector')
    annotated = {annotation['image_id'] for annotation in used}
    if empty := [image['file_name'] for image in coco['images'] if image['id'] not in annotated]:
        report.notes.append(f'{len(empty)} of {len(images)} images have no boxes: {_some(empty)}')
    if never := [name for id_, name in names.items() if not trained[id_]]:
        report.notes.append(f'{len(never)} of {len(names)} classes never occur: {_some(map(repr, never))}')


def _missing(paths: Iterable[Path]) -> list[Path]:
    """Paths without a file, with one listing for each folder."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_folder[path.parent].append(path)
    missing = []
    for folder, members in by_folder.items():
        present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing.extend(path for path in members if path.name not in present)
    return missing


def _check_image(path: Path, image: dict, kinds: dict[str, list[str]]) -> None:
    """Decode a image and sort what is odd about it into ``kinds``."""
    try:
        with Image.open(path) as file:
            file.load()
            mode, orientation = file.mode, file.getexif().get(ORIENTATION, 1)
            transparent = 'transparency' in file.info
        size = read_size(path)
    except Exception as error:  # broken files make Pillow raise errors of many types
        kinds['unreadable'].append(f'{path.name} ({error})')
        return
    if size != (image['width'], image['height']):
        turned = f', turned as its EXIF orientation {orientation} says' if orientation >= 5 else ''
        kinds['size'].append(f'{path.name} is {size[0]} x {size[1]}{turned}, not {image["width"]} x {image["height"]}')
    elif orientation > 1:
        kinds['turned'].append(path.name)
    if mode in ('1', 'L', 'LA', 'I', 'I;16', 'F'):
        kinds['gray'].append(path.name)
    elif transparent or mode in ('RGBA', 'PA', 'CMYK'):
        kinds['four'].append(path.name)


def _check_images(coco: dict, img_dir: Path, sample: int, report: Report) -> None:
    paths = {img_dir / image['file_name']: image for image in coco['images']}
    if missing := _missing(paths):
        report.errors.append(
            f'{len(missing)} of {len(paths)} images are not in "{img_dir}": '
            + _some(paths[path]['file_name'] for path in missing)
        )
        return
    chosen = random.Random(0).sample(sorted(paths), min(sample, len(paths)))
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in chosen:
        _check_image(path, paths[path], kinds)
    for kind, level, text in (
        ('unreadable', report.errors, 'cannot be read'),
        ('size', report.errors, 'have another size than the file says'),
        ('turned', report.warnings, 'are turned when read (EXIF orientation); the boxes must fit the turned image'),
        ('gray', report.warnings, 'are gray; the channel is repeated'),
        ('four', report.warnings, 'have four channels; they are turned into three'),
    ):
        if kinds[kind]:
            level.append(f'{len(kinds[kind])} of {len(chosen)} images looked at {text}: {_some(kinds[kind])}')


def _check_content(coco: dict, img_dir: Path, classes: Sequence[str] | None, sample: int) -> Report:
    report = Report()
    if not coco['images']:
        report.errors.append('the annotation file lists no image')
    _check_fields(coco, report)
    if report.errors:
        return report
    _check_values(coco, report)
    _check_ids(coco, report)
    _check_classes(coco, classes, report)
    if not report.errors:
        _check_boxes(coco, classes, report)
    _check_images(coco, img_dir, sample, report)
    return report


def check_coco(
    ann_file: str | Path, img_dir: str | Path, classes: Sequence[str] | None = None, sample: int = 200
) -> Report:
    """Check annotations in COCO's format and their images.

    Args:
        ann_file: The annotations.
        img_dir: The folder that file names are relative to.
        classes: ``metainfo.classes`` of the config; None takes the file's categories.
        sample: How many images are decoded (the same ones each time); 0 for none. That all are there is looked
            at in any case.

    Returns:
        What was found; the checks that build on broken parts are left out.
    """
    try:
        return _check_content(load_coco(ann_file), Path(img_dir), classes, sample)
    except AnnotationError as error:
        return Report(errors=[str(error)])
