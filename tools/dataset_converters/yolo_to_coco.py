"""Convert YOLO txt files to one annotation file in COCO format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', required=True, metavar='DIR', dest='image_dir', help='folder of the images')
    parser.add_argument('--labels', metavar='DIR', help='folder of the txt files; default: "labels" beside "images"')
    parser.add_argument(
        '--classes', required=True, metavar='NAMES', help='a,b,c or a file: a name per line, or a data.yaml'
    )
    parser.add_argument('--root', metavar='DIR', help='write file names relative to DIR; default: --images')
    parser.add_argument('--out', required=True, metavar='FILE', help='the json to write, which must not exist')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from qbheat_mm.checkpoint import refuse_existing
from qbheat_mm.datasets.coco import AnnotationError, CocoWriter, index_images, parse_classes, read_size, read_text
from qbheat_mm.files import list_files


def read_boxes(path: Path, classes: Sequence[str]) -> list[tuple[str, tuple[float, float, float, float]]]:
    """The boxes of a txt file.

    Args:
        path: Lines of class index, center x, center y, width, height, as fractions of the image.
        classes: Names by index.

    Returns:
        Names and boxes, corners x1, y1, x2, y2 as fractions.

    Raises:
        AnnotationError: With file and line, if a line is malformed.
    """
    boxes = []
    for i, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 5:
            raise AnnotationError(
                f'{path}:{i}: {len(fields)} fields; a box has 5 (class, center x, center y, width, height)'
            )
        try:
            label, (x, y, w, h) = int(fields[0]), map(float, fields[1:])
        except ValueError as error:
            raise AnnotationError(f'{path}:{i}: {line!r} is not an index and four numbers') from error
        if not 0 <= label < len(classes):
            raise AnnotationError(f'{path}:{i}: class {label}, but there are {len(classes)}: {", ".join(classes)}')
        if not (all(-1 <= value <= 2 for value in (x, y)) and all(0 <= value <= 2 for value in (w, h))):
            raise AnnotationError(f'{path}:{i}: {" ".join(fields[1:])} are not fractions of the image; pixels?')
        boxes.append((classes[label], (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    return boxes


def find_labels(image_dir: Path) -> Path:
    """The folder of txt files: ``.../labels/train`` for ``.../images/train``, else the images' own."""
    parts = list(image_dir.absolute().parts)
    if 'images' in parts:
        last = len(parts) - 1 - parts[::-1].index('images')
        labels = Path(*parts[:last], 'labels', *parts[last + 1 :])
        if labels.is_dir():
            return labels
    return image_dir


def yolo_to_coco(
    image_dir: str | Path,
    out: str | Path,
    classes: Sequence[str],
    labels: str | Path | None = None,
    root: str | Path | None = None,
) -> dict[str, int]:
    """Convert a folder.

    Args:
        image_dir: Folder of the images. An image without a txt file has no boxes.
        out: The file to write, which must not exist.
        classes: Class names by index.
        labels: Folder of the txt files, with the images' relative paths; None follows YOLO's convention.
        root: File names are written relative to this folder; None takes ``image_dir``.

    Returns:
        Counts of what was read, clipped and dropped.

    Raises:
        AnnotationError: With file and line, if a file is malformed.
        FileExistsError: If ``out`` exists.
    """
    refuse_existing(out)
    image_dir = Path(image_dir)
    labels = Path(labels) if labels else find_labels(image_dir)
    images = index_images(image_dir)
    files = {key: labels / f'{key}.txt' for key in images}
    if not any(path.is_file() for path in files.values()):
        raise AnnotationError(f'No image of "{image_dir}" has a txt file of its name in "{labels}".')
    writer = CocoWriter(classes)
    alone = {Path(name).with_suffix('') for name in list_files(labels, ('.txt',))} - images.keys()
    writer.counts['txt files dropped, no image'] = len(alone - {Path('classes')})
    for key, image in images.items():
        width, height = read_size(image)
        writer.add_image(image.relative_to(root or image_dir).as_posix(), width, height)
        if not files[key].is_file():
            writer.counts['images without a txt file'] += 1
            continue
        for name, (x1, y1, x2, y2) in read_boxes(files[key], classes):
            writer.add_box(name, (x1 * width, y1 * height, x2 * width, y2 * height))
    return writer.write(out)


def main() -> None:
    """Convert as the command line says."""
    args = parse_args()
    try:
        yolo_to_coco(**vars(args) | dict(classes=parse_classes(args.classes)))
    except (AnnotationError, OSError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
