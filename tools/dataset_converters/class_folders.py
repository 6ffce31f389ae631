"""Convert class folders to train/ and val/, the layout of the *_imagenette configs.

    python tools/dataset_converters/class_folders.py SOURCE OUT [--size 128]

SOURCE has train/ and val/ with class folders in each (Imagenette, ImageNet), or class folders alone, of which every
fifth image becomes validation. --size reduces larger images to that shorter side in px, so that no epoch decodes large
files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='class folders, or train/ and val/ with class folders')
    parser.add_argument('out', type=Path, help='folder to write, which must not exist')
    parser.add_argument('--size', type=int, help='reduce larger images to this shorter side, in px')
    parser.add_argument('--val-every', type=int, default=5, help='without val/, one in so many images (%(default)s)')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from qbheat_mm.checkpoint import atomic_dir, refuse_existing
from qbheat_mm.checkpoint.atomic import shorten_name
from qbheat_mm.datasets.image_folder import find_classes, warn_of_splits
from qbheat_mm.datasets.transforms import decode_image
from qbheat_mm.files import read_file
from qbheat_mm.text import join_names, printable

Tree = dict[str, list[Path]]  # class -> its images


class LayoutError(ValueError):
    """A folder that cannot be converted; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def read_classes(folder: Path) -> Tree:
    """The class folders in ``folder`` and the images at any depth in each, sorted."""
    return {name: [folder / path for path in paths] for name, paths in find_classes(folder).items()}


def read_splits(source: Path, val_every: int) -> dict[str, Tree]:
    """``train`` and ``val``, as the source has them, or split here.

    Raises:
        LayoutError: With the folders that are wrong.
    """
    if not source.is_dir():
        raise LayoutError(f'There is no folder "{source}".')
    if (source / 'train').is_dir() and (source / 'val').is_dir():
        train, val = (read_classes(source / split) for split in ('train', 'val'))
        check_counts(source / 'train', train, 2, 'a class cannot be learned from fewer')
        check_counts(source / 'val', val, 1, 'a class cannot be evaluated on fewer')
        for split, other, surplus in (('val', 'train', val.keys() - train), ('train', 'val', train.keys() - val)):
            if surplus:
                raise LayoutError(f'{split}/ has classes that {other}/ lacks: {join_names(sorted(surplus))}.')
        return dict(train=train, val=val)
    warn_of_splits(source)
    classes = read_classes(source)
    check_counts(source, classes, 2, 'one for training and one for validation')
    return dict(
        train={name: [path for i, path in enumerate(each) if i % val_every] for name, each in classes.items()},
        val={name: each[::val_every] for name, each in classes.items()},
    )


def check_counts(folder: Path, classes: Tree, at_least: int, why: str) -> None:
    """Refuse a folder without classes, or with classes of too few images."""
    if not classes:
        raise LayoutError(f'"{folder}" has no sub-folders, whose names would be the classes.')
    if few := [f'{name} ({len(each)})' for name, each in classes.items() if len(each) < at_least]:
        raise LayoutError(
            f'Class folders of "{folder}" with fewer than {at_least} image(s), {why}: {join_names(few)}. '
            f'Add images ({", ".join(IMG_EXTENSIONS)}) or remove the folders.'
        )


def convert(source: Path, out: Path, size: int | None = None, val_every: int = 5) -> dict[str, int]:
    """Write ``out/train`` and ``out/val`` atomically.

    Args:
        source: Class folders, or train/ and val/ with class folders.
        out: Must not exist, nor lie in ``source``.
        size: Shorter side in px to which larger images are reduced; None copies the files.
        val_every: Without val/, one in so many images is for validation.

    Returns:
        The number of images per split.

    Raises:
        FileExistsError: If ``out`` exists.
        LayoutError: If the source has no usable layout, or holds an unreadable image to reduce.
    """
    refuse_existing(out)
    if out.resolve().is_relative_to(source.resolve()):
        raise LayoutError(f'"{out}" lies in the source "{source}", where it would be a class; name another folder.')
    if val_every < 2:
        raise LayoutError(f'--val-every {val_every} leaves nothing to learn from; 2 or more.')
    splits = read_splits(source, val_every)
    with atomic_dir(out) as partial:
        for split, classes in splits.items():
            for name, images in classes.items():
                (partial / split / name).mkdir(parents=True)
                for i, path in enumerate(images):  # the number keeps equal names from different folders apart
                    file_name = f'{i:06d}_{shorten_name(path.stem, 7 + len(path.suffix))}{path.suffix}'
                    _write(path, partial / split / name / file_name, size)
    return {split: sum(map(len, classes.values())) for split, classes in splits.items()}


def _write(source: Path, target: Path, size: int | None) -> None:
    if size is None:
        shutil.copyfile(source, target)
        return
    try:
        image = Image.fromarray(decode_image(read_file(source))[..., ::-1])
    except Exception as error:  # Pillow raises errors of many types for malformed files
        raise LayoutError(f'The image "{source}" cannot be read ({error}). Remove or replace it.') from error
    scale = size / min(image.size)
    if scale < 1:
        shape = [max(size, round(length * scale)) for length in image.size]
        image = image.resize(shape, Image.Resampling.LANCZOS)
    image.save(target, quality=95)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert as the command line says."""
    args = parse_args(arguments)
    try:
        counts = convert(args.source, args.out, args.size, args.val_every)
    except (LayoutError, OSError) as error:
        sys.exit(f'class_folders: {error}')
    classes = sum(1 for _ in (args.out / 'train').iterdir())
    print(f'wrote {args.out}: {classes} classes, {counts["train"]} training and {counts["val"]} validation images')
    print(f'Train on it with DATA_ROOT={args.out} NUM_CLASSES={classes} and any config *_imagenette.py')


if __name__ == '__main__':
    main()
