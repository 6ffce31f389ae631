"""Convert Pascal VOC xml files to one annotation file in COCO format."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', required=True, metavar='DIR', dest='image_dir', help='folder of the images')
    parser.add_argument('--annotations', metavar='DIR', help="folder of the xml files; default: the images'")
    parser.add_argument('--classes', metavar='NAMES', help='a,b,c or a file of names; default: all that occur, sorted')
    parser.add_argument('--split', metavar='FILE', help='names to take, one per line, e.g. ImageSets/Main/train.txt')
    parser.add_argument('--root', metavar='DIR', help='write file names relative to DIR; default: --images')
    parser.add_argument('--zero-based', action='store_true', help='corners start at 0 instead of 1')
    parser.add_argument('--out', required=True, metavar='FILE', help='the json to write, which must not exist')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from qbheat_mm.checkpoint import refuse_existing
from qbheat_mm.datasets.coco import (
    UTF16,
    AnnotationError,
    CocoWriter,
    index_images,
    parse_classes,
    read_size,
    read_text,
)
from qbheat_mm.files import describe_content, list_files, read_file

Object = tuple[str, tuple[float, float, float, float], bool]  # name, corners as in the file, difficult


def read_xml(path: Path) -> str | bytes:
    """The text of an xml file in the encoding that it states, of which expat knows few; UTF-16 it reads itself.

    Raises:
        AnnotationError: If the encoding is unknown or wrong.
    """
    content = read_file(path)
    if content.startswith(UTF16):
        return content
    stated = re.match(rb'(?:\xef\xbb\xbf)?<\?xml[^>]*encoding=["\']([\w.:-]+)', content)
    encoding = stated[1].decode() if stated else 'utf-8'
    if encoding.lower() in ('utf-8', 'utf-16'):  # .NET states utf-16 in what it writes as UTF-8
        encoding = 'utf-8-sig'
    try:
        return content.decode(encoding)
    except LookupError as error:
        raise AnnotationError(f'{path}:1: states the unknown encoding "{encoding}"; save it as UTF-8') from error
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f'{path}: not in {encoding} ({error}); save it as UTF-8, or state its encoding in the first line: '
            '<?xml version="1.0" encoding="gbk"?>'
        ) from error


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse xml; the attribute ``line`` of each element holds its line number."""
    text = read_xml(path)
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict) -> None:
        builder.start(tag, attributes).set('line', parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        reason = describe_content(read_file(path)) or expat.ErrorString(error.code)
        raise AnnotationError(f'{path}:{error.lineno}: not well-formed xml ({reason})') from error
    return builder.close()


def field(path: Path, parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    """The first child with this tag, which must hold text."""
    child = parent.find(tag)
    if child is None or not (child.text or '').strip():
        raise AnnotationError(f'{path}:{parent.get("line")}: <{parent.tag}> has no <{tag}>')
    return child


def number(path: Path, parent: ElementTree.Element, tag: str) -> float:
    """The number in the child with this tag."""
    child = field(path, parent, tag)
    try:
        value = float(child.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AnnotationError(f'{path}:{child.get("line")}: <{tag}> is {child.text!r}, not a number')
    return value


def read_objects(path: Path, size: tuple[int, int]) -> list[Object]:
    """The objects of an xml file.

    Args:
        path: The file.
        size: Width and height of its image, to compare with those of the file, if any.

    Raises:
        AnnotationError: With file and line, if a field is missing or malformed, or the size differs.
    """
    root = parse_xml(path)
    if root.tag != 'annotation':
        raise AnnotationError(f'{path}:{root.get("line")}: its root is <{root.tag}>; VOC has <annotation>')
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
        objects.append((field(path, element, 'name').text.strip(), corners, difficult))
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
    """Convert a folder. Objects marked difficult become crowds, which training and evaluation ignore.

    Args:
        image_dir: Folder of the images.
        out: The file to write, which must not exist.
        annotations: Folder of the xml files, with the images' relative paths; None takes ``image_dir``.
        classes: Class names in order; objects of other classes are dropped and counted. None takes all that occur,
            sorted.
        split: A file with one name per line (``ImageSets/Main/train.txt``); None takes every image.
        root: File names are written relative to this folder; None takes ``image_dir``.
        zero_based: Corners start at 0 and xmax, ymax are exclusive; in VOC they start at 1 and are inclusive.

    Returns:
        Counts of what was read, clipped and dropped.

    Raises:
        AnnotationError: With file and line, if a file is malformed.
        FileExistsError: If ``out`` exists.
    """
    refuse_existing(out)
    image_dir, annotations = Path(image_dir), Path(annotations or image_dir)
    images = index_images(image_dir)
    alone = {Path(name).with_suffix('') for name in list_files(annotations, ('.xml',))} - images.keys()
    if split:
        listed = [Path(line.split()[0]) for line in read_text(split).splitlines() if line.strip()]
        if missing := [str(key) for key in listed if key not in images]:
            raise AnnotationError(f'{split} lists {len(missing)} without an image in "{image_dir}", first {missing[0]}')
        images = {key: images[key] for key in listed}

    found: dict[Path, tuple[tuple[int, int], list[Object]]] = {}
    for key, image in images.items():
        xml = annotations / f'{key}.xml'
        size = read_size(image)
        if xml.is_file():
            found[image] = size, read_objects(xml, size)
    if not found:
        raise AnnotationError(f'No image of "{image_dir}" has an xml file of its name in "{annotations}".')

    writer = CocoWriter(classes or sorted({name for _, objects in found.values() for name, _, _ in objects}))
    writer.counts['xml files dropped, no image'] = len(alone)
    if dropped := len(images) - len(found):
        writer.counts['images dropped, no xml'] = dropped
    offset = 0 if zero_based else 1
    for image, ((width, height), objects) in found.items():
        writer.add_image(image.relative_to(root or image_dir).as_posix(), width, height)
        for name, (x1, y1, x2, y2), difficult in objects:
            writer.counts['boxes marked difficult'] += difficult
            writer.add_box(name, (x1 - offset, y1 - offset, x2, y2), crowd=difficult)
    return writer.write(out)


def main() -> None:
    """Convert as the command line says."""
    args = parse_args()
    try:
        voc_to_coco(**vars(args) | dict(classes=args.classes and parse_classes(args.classes)))
    except (AnnotationError, OSError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
