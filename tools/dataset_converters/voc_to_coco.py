"""Turn Pascal VOC's xml files into one annotation file in COCO's format."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from qbheat_mm.datasets.coco import AnnotationError, CocoWriter, find_images, parse_classes, read_size


@dataclass
class VocObject:
    """A box of an xml file, corners as the file has them."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def parse_xml(path: Path) -> ElementTree.Element:
    """Read xml into elements that know their line, as attribute ``line``."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict) -> None:
        builder.start(tag, attributes).set('line', parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise AnnotationError(
            f'{path}:{error.lineno}: not well-formed xml ({expat.ErrorString(error.code)})'
        ) from error
    return builder.close()


def field(path: Path, parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    """The only child of that name, which must hold text."""
    child = parent.find(tag)
    if child is None or not (child.text or '').strip():
        raise AnnotationError(f'{path}:{parent.get("line")}: <{parent.tag}> has no <{tag}>')
    return child


def number(path: Path, parent: ElementTree.Element, tag: str) -> float:
    """The number in the child of that name."""
    child = field(path, parent, tag)
    try:
        value = float(child.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AnnotationError(f'{path}:{child.get("line")}: <{tag}> is {child.text!r}, not a number')
    return value


def read_objects(path: Path, size: tuple[int, int]) -> list[VocObject]:
    """The objects of an xml file.

    Args:
        path: The file.
        size: Width and height of its image, which the file must agree with where it names them.

    Raises:
        AnnotationError: With file and line, if something is missing, malformed or of another size.
    """
    root = parse_xml(path)
    stated = root.find('size')
    if stated is not None:
        named = tuple(int(number(path, stated, tag)) for tag in ('width', 'height'))
        if named not in (size, (0, 0)):  # some tools write 0, 0
            raise AnnotationError(
                f'{path}:{stated.get("line")}: its image has {size[0]} x {size[1]} pixels, <size> says '
                f'{named[0]} x {named[1]}'
            )
    objects = []
    for element in root.iterfind('object'):
        box = element.find('bndbox')
        if box is None:
            raise AnnotationError(f'{path}:{element.get("line")}: <object> has no <bndbox>')
        corners = tuple(number(path, box, tag) for tag in ('xmin', 'ymin', 'xmax', 'ymax'))
        difficult = element.find('difficult') is not None and bool(number(path, element, 'difficult'))
        objects.append(VocObject(field(path, element, 'name').text.strip(), corners, difficult))
    return objects


def voc_to_coco(
    image_dir: str | Path,
    out: str | Path,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    split: str | Path | None = None,
    root: str | Path | None = None,
    zero_based: bool = False,
) -> dict[str, int]:
    """Convert a folder.

    Args:
        image_dir: Folder of the images.
        out: The file to write.
        annotations: Folder of the xml files, laid out and named as the images; None takes ``image_dir``.
        classes: Class names in the order wanted; objects of other classes are dropped and counted. None takes
            every name that occurs, sorted.
        split: A file with one name per line (``ImageSets/Main/train.txt``); None takes every image.
        root: File names are written relative to this folder; None takes ``image_dir``.
        zero_based: Corners start at 0 and the far ones lie outside the box. VOC's own start at 1 and all lie
            inside it.

    Returns:
        Counts of what was read, clipped and dropped. Objects marked difficult become crowds, which are neither
        trained on nor held against a detector.

    Raises:
        AnnotationError: If a file is malformed; names file and line.
    """
    image_dir, annotations = Path(image_dir), Path(annotations or image_dir)
    images = find_images(image_dir)
    alone = {path.relative_to(annotations).with_suffix('') for path in annotations.rglob('*.xml')} - images.keys()
    if split:
        listed = [Path(line.split()[0]) for line in Path(split).read_text().splitlines() if line.strip()]
        if missing := [str(key) for key in listed if key not in images]:
            raise AnnotationError(f'{split} lists {len(missing)} without a image in "{image_dir}", first {missing[0]}')
        images = {key: images[key] for key in listed}

    found: dict[Path, tuple[tuple[int, int], list[VocObject] | None]] = {}
    for key, image in images.items():
        size = read_size(image)
        xml = annotations / f'{key}.xml'
        found[image] = size, read_objects(xml, size) if xml.is_file() else None
    if not any(objects is not None for _, objects in found.values()):
        raise AnnotationError(f'No image of "{image_dir}" has an xml file of its name in "{annotations}".')

    names = sorted({item.name for _, objects in found.values() for item in objects or []})
    writer = CocoWriter(classes or names)
    writer.counts['xml files dropped, no image'] = len(alone)
    for image, ((width, height), objects) in found.items():
        if objects is None:
            writer.counts['images dropped, no xml'] += 1
            continue
        writer.add_image(image.relative_to(root or image_dir).as_posix(), width, height)
        for item in objects:
            x1, y1, x2, y2 = item.box
            near = 0 if zero_based else 1
            writer.counts['boxes marked difficult'] += item.difficult
            writer.add_box(item.name, (x1 - near, y1 - near, x2, y2), crowd=item.difficult)
    return writer.write(out)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', dest='image_dir', required=True, metavar='DIR', help='folder of the images')
    parser.add_argument('--annotations', metavar='DIR', help="folder of the xml files; default: the images'")
    parser.add_argument('--classes', metavar='NAMES', help='a,b,c or a file of names; default: all that occur, sorted')
    parser.add_argument('--split', metavar='FILE', help='names to take, one per line, e.g. ImageSets/Main/train.txt')
    parser.add_argument('--root', metavar='DIR', help='write file names relative to DIR; default: --images')
    parser.add_argument('--zero-based', action='store_true', help='corners start at 0 instead of 1')
    parser.add_argument('--out', required=True, metavar='FILE', help='the json to write')
    return parser.parse_args()


def main() -> None:
    """Convert as the command line says."""
    args = vars(parse_args())
    if args['classes']:
        args['classes'] = parse_classes(args['classes'])
    try:
        voc_to_coco(**args)
    except AnnotationError as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
