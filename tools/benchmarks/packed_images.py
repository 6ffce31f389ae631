"""Processor time of an image from files and from a pack, through the pipelines of QB-Heat's ImageNet config.

    python tools/benchmarks/packed_images.py                          # 500 x 375 px
    python tools/benchmarks/packed_images.py --image-size 4000 3000 --images 8

Generated JPEGs become crops of 224 px in the worker, by mmpretrain's stock transforms, by ours, and from a pack; with
--pack-size 256 unless they keep their size (0). With crops on the device, what the main process pays for a batch is
listed beside what the worker pays, on --device.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import _options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=64, help='JPEGs to make, and images of a batch')
    parser.add_argument('--image-size', type=int, nargs=2, default=(500, 375), metavar=('WIDTH', 'HEIGHT'))
    parser.add_argument('--pack-size', type=int, default=256, help='shorter side in the pack; 0 keeps the sizes')
    parser.add_argument('--size', type=int, default=224, help='side of the crops')
    return _options.parse_args(parser, argv, rounds=5)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401  # before the packages that it patches

# isort: split
import torch
from _timing import Clock, setting, use_device, write_json
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from pretrain_throughput import CONFIGS, METHODS, write_jpegs

from qbheat_mm.datasets.packing import pack_images
from qbheat_mm.datasets.transforms.views import collate_views
from qbheat_mm.engine.seeding import SAMPLE, seed_generators


def build_datasets(files: Path, pack: Path, size: int) -> dict[str, tuple]:
    """Each way to read a batch: its dataset and collate function."""
    pipeline = Config.fromfile(CONFIGS / METHODS['qbheat']).train_dataloader.dataset.pipeline
    crop, rest = dict(pipeline[1], scale=size), pipeline[2:]
    stock = [dict(type='LoadImageFromFile'), dict(crop, type='RandomResizedCrop', backend='pillow'), *rest]
    reduced = dict(crop, type='LoadReducedRandomResizedCrop')
    ours = [pipeline[0], crop, *rest]
    entries = {
        'stock mmpretrain': (dict(type='CustomDataset', data_root=str(files), pipeline=stock), default_collate),
        'ours': (dict(type='ImageFolderDataset', data_root=str(files), pipeline=ours), default_collate),
        'ours, reduced decoding': (
            dict(type='ImageFolderDataset', data_root=str(files), pipeline=[reduced, *rest]),
            default_collate,
        ),
        'packed': (dict(type='PackedImageDataset', data_root=str(pack), pipeline=ours), default_collate),
        'packed, crops on the device': (
            dict(type='PackedImageDataset', data_root=str(pack), pipeline=ours, device_crops=True),
            collate_views,
        ),
    }
    return {name: (DATASETS.build(dict(cfg, with_label=False)), collate) for name, (cfg, collate) in entries.items()}


def read(dataset, collate: Callable, images: int) -> dict:
    """A batch as a worker makes it, seeding included."""
    samples = []
    for index in range(images):
        seed_generators(SAMPLE, 0, 0, index)
        samples.append(dataset[index % len(dataset)])
    return collate(samples)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds an image: of a worker, and of the main process' preprocessor."""
    files = write_jpegs(folder / 'files', args.images, tuple(args.image_size))
    pack_images(files, folder / 'pack', args.pack_size or None)
    entries = build_datasets(files, folder / 'pack', args.size)
    preprocessor = dict(Config.fromfile(CONFIGS / METHODS['qbheat']).model.data_preprocessor)
    preprocessor = MODELS.build(dict(preprocessor, type='ViewDataPreprocessor')).to(args.device)
    clock = Clock(args)
    times: dict[str, dict[str, list[float]]] = {name: dict(worker=[], main=[]) for name in entries}
    for _ in range(args.rounds + 1):
        for name, (dataset, collate) in entries.items():
            start = process_time()
            batch = read(dataset, collate, args.images)
            times[name]['worker'].append(process_time() - start)
            times[name]['main'].append(clock.time(lambda batch: preprocessor(batch), batch))
    # The first round reads the disk.
    return {
        name: {part: 1e3 * median(record[1:]) / args.images for part, record in each.items()}
        for name, each in times.items()
    }


def table(figures: dict[str, dict[str, float]]) -> str:
    """Everything in Markdown."""
    stock = figures['stock mmpretrain']['worker']
    lines = ['| | worker, ms an image | images/s a core | : stock | main process, ms an image |', '|---' * 5 + '|']
    for name, each in figures.items():
        worker = each['worker']
        lines.append(f'| {name} | {worker:.3f} | {1e3 / worker:.0f} | {stock / worker:.1f} | {each["main"]:.3f} |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_args(argv)
    use_device(args)
    init_default_scope('mmpretrain')
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        figures = measure(args, Path(folder))
    print(table(figures))
    machine = setting(args, 'images', 'image_size', 'pack_size', 'size')
    write_json(args.out, dict(setting=machine, ms=figures))


if __name__ == '__main__':
    main()
