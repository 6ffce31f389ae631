"""Measure how well the features of a backbone obey z_x = A z, z_y = B z, and compare with controls.

    python tools/analysis_tools/heat_hypothesis.py CONFIG CHECKPOINT --data FOLDER

Linear maps are fitted on one half of the images and evaluated by R^2 on the other half: they predict the features one
cell and one quarter of the map away, and the horizontal derivative from the vertical one. R^2 alone also rises when
features are smooth or have collapsed. Therefore the same is measured on the same images for the architecture with
random weights (the effect of overlapping receptive fields) and for the trained features with their positions shuffled
within each image (the effect of the image's mean features), and R^2 is listed with that of copying z(x), the number
of channels and the effective rank.

Features are those of full images. Writes heat_hypothesis.json and heat_hypothesis.png.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qbheat_mm_cli import add_trust, config_file


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', type=config_file, help='a config whose model.backbone builds a backbone of mmpretrain'
    )
    parser.add_argument('checkpoint', help='its weights: a whole model, or a backbone alone')
    add_trust(parser)
    parser.add_argument('--data', help="folder of images, any tree; else the data_root of the config's training set")
    parser.add_argument('--out', type=Path, default='work_dirs/heat_hypothesis', help='folder for JSON and figure')
    parser.add_argument('--device', help='device of the networks; default: the GPU where there is one')
    parser.add_argument('--size', type=int, default=224, help='side of the images in px (%(default)s)')
    parser.add_argument('--num-images', type=int, default=1000, help='drawn from the folder (%(default)s)')
    parser.add_argument('--level', type=int, default=-1, help='which feature map of the backbone (the last)')
    parser.add_argument('--batch-size', type=int, default=32, help='images per batch (%(default)s)')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the draw, the random weights, the shuffling')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import matplotlib
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Generator, randperm
from torch.utils.data import DataLoader

import qbheat_mm  # noqa: F401, registers the models
from qbheat_mm.checkpoint import CheckpointError, atomic_write, guard, read_state_dict
from qbheat_mm.datasets.image_folder import list_images
from qbheat_mm.evaluation.functional.features import build_encoder, calibrate_batch_norm, extract_features
from qbheat_mm.evaluation.functional.heat_law import (
    describe_generators,
    learned_generators,
    measure,
    shuffle_positions,
)

matplotlib.use('Agg')
from matplotlib import pyplot as plt

SOURCES = {
    'trained': 'trained',
    'random': 'random weights: what the architecture gives for free',
    'shuffled': 'trained, positions shuffled within each image: what knowing the image gives',
}
COLORS = {'trained': '#c1272d', 'random': '#5b7fa6', 'shuffled': '#b9b9b9'}


def _load_batch(pipeline: Compose, paths: Sequence[Path]) -> dict:
    return pseudo_collate([pipeline(dict(img_path=str(path))) for path in paths])


def build_loaders(
    folder: str | Path, size: int, count: int, seed: int = 0, batch_size: int = 32, num_workers: int = 0
) -> list[DataLoader]:
    """Draw up to ``count`` images from a folder and split them in two halves, to fit on and to evaluate on.

    Images are resized (short side 8 / 7 of ``size``) and center-cropped to ``size`` px. The datasets of the loaders
    are lists of paths.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If there are fewer than four images.
    """
    if not folder or not Path(folder).is_dir():
        raise FileNotFoundError(f'There is no folder "{folder}". Name a folder of images with --data.')
    paths = list_images(folder)
    order = randperm(len(paths), generator=Generator().manual_seed(seed))[: max(count, 0)].tolist()
    if len(order) < 4:
        raise ValueError(f'{len(order)} images from "{folder}" are too few: use at least 4, better hundreds.')
    pipeline = Compose(
        [
            dict(type='LoadImage'),
            dict(type='ResizeEdge', scale=math.ceil(size * 8 / 7), edge='short', backend='pillow'),
            dict(type='CenterCrop', crop_size=size),
            dict(type='PackInputs'),
        ]
    )
    half = len(order) // 2
    return [
        DataLoader(
            [paths[i] for i in part], batch_size, num_workers=num_workers, collate_fn=partial(_load_batch, pipeline)
        )
        for part in (order[:half], order[half:])
    ]


def examine(
    config: Config,
    checkpoint: str | Path,
    fit: DataLoader,
    held_out: DataLoader,
    size: int,
    level: int = -1,
    seed: int = 0,
    device: str = 'cpu',
) -> dict:
    """Measure the feature maps of a checkpoint and its controls on images of ``size`` px.

    Returns:
        All numbers, ready for JSON.

    Raises:
        CheckpointError: If the checkpoint does not fit the config.
        ValueError: If the map cannot be divided into quarters, or the backbone has no such output.
    """

    def features(encoder) -> list:
        return [
            [maps.cpu() for maps, _ in extract_features(encoder.backbone, encoder.data_preprocessor, loader, level)]
            for loader in (fit, held_out)
        ]

    trained = build_encoder(config, checkpoint).to(device)
    halves = features(trained)
    channels, height, width = halves[0][0].shape[1:]
    if height % 2 or width % 2:
        raise ValueError(
            f'Images of {size} px give a map of {height} x {width} cells, which has no whole quarters. Choose '
            f'another --size, a multiple of {2 * round(size / height)} as a rule, or an earlier --level.'
        )
    r2 = dict(trained=measure(*halves))
    shuffled = measure(*(shuffle_positions(half, seed) for half in halves))
    del halves
    random = build_encoder(config, seed=seed).to(device)
    calibrate_batch_norm(random, fit, len(fit) * fit.batch_size)
    r2['random'] = measure(*features(random))
    return dict(
        backbone=type(trained.backbone).__name__,
        channels=channels,
        map=[height, width],
        stride=round(size / height),
        quarter=height // 2,
        images=dict(fit=len(fit.dataset), held_out=len(held_out.dataset), size=size),
        r2=r2 | dict(shuffled=shuffled),
        generators=describe_generators(learned_generators(read_state_dict(checkpoint))),
    )


def rows(report: dict) -> list[tuple[str, dict, dict]]:
    """Rows of the table: a label, R^2 per source, and R^2 of copying per source."""
    table = []
    for distance, field in (('one cell', 'one_cell'), (f'one quarter ({report["quarter"]} cells)', 'quarter')):
        for direction, axis in (('right', 'x'), ('down', 'y')):
            fitted = {name: measured[field][axis] for name, measured in report['r2'].items()}
            copied = {name: measured[field][f'copy_{axis}'] for name, measured in report['r2'].items()}
            table.append((f'{distance} {direction}', fitted, copied))
    derivative = {name: measured['derivative'] for name, measured in report['r2'].items()}
    return [*table, ('horizontal derivative\nfrom vertical one', derivative, {})]


def caveat(report: dict) -> str:
    """A warning if there are too few images, else an empty string."""
    height, width = report['map']
    pairs = report['images']['fit'] * min(height * report['quarter'], (height - 2) * (width - 2))
    if pairs >= 10 * report['channels']:
        return ''
    return f'Only {pairs} pairs of cells for {report["channels"]} channels: R² is too low. Use more images.'


def _number(value: float | None, digits: int = 3) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def print_table(report: dict) -> None:
    """Print R^2 on the held-out images, and that of copying in brackets."""
    table = Table(title='R² on held-out images (in brackets: of copying the feature)')
    table.add_column('predicted')
    for name in SOURCES:
        table.add_column(name, justify='right')
    for label, fitted, copied in rows(report):
        cells = [_number(fitted[name]) + (f' ({_number(copied[name])})' if copied else '') for name in SOURCES]
        table.add_row(label.replace('\n', ' '), *cells)
    table.add_section()
    table.add_row('effective rank', *(_number(report['r2'][name]['effective_rank'], 1) for name in SOURCES))
    table.add_row('channels', *[str(report['channels'])] * len(SOURCES))
    console = Console()
    console.print()  # the progress bar of the calibration ends without a line break
    console.print(table)
    if report['generators']:
        console.print(f'Learned A and B: ||AB - BA|| / ||AB|| = {_number(report["generators"]["commutator"])}')
    if text := caveat(report):
        console.print(f'Caution: {text}')


def draw(report: dict, path: str | Path) -> None:
    """Plot the table and, where the checkpoint has any, the eigenvalues of A and B."""
    generators, images = report['generators'], report['images']
    figure = plt.figure(figsize=(15, 8) if generators else (10, 8), layout='constrained')
    panels = figure.subplots(1, 2, width_ratios=[1.35, 1]) if generators else [figure.subplots()]
    figure.suptitle(f'Do the features of {report["backbone"]} obey z_x = A z and z_y = B z?', fontsize=15)
    handles = _draw_r2(report, panels[0])
    if generators:
        _draw_eigenvalues(generators, panels[1])
    caption = (
        f'{report["channels"]} channels, stride {report["stride"]}, {report["map"][0]} x {report["map"][1]} cells; '
        f'fitted on {images["fit"]} images of {images["size"]} px, evaluated on {images["held_out"]} others.'
    )
    title = f'{caption}\n{caveat(report)}'.strip()
    figure.legend(handles=handles, title=title, alignment='left', loc='outside lower left', frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    atomic_write(path, buffer.getvalue())


def _draw_r2(report: dict, axes: plt.Axes) -> list:
    """Plot R^2 as bars and that of copying as diamonds; returns the handles of the legend."""
    table = rows(report)
    floor = -1.0
    marks = dict(mfc='white', mec='black', ls='none')
    handles = []
    for i, (name, label) in enumerate(SOURCES.items()):
        heights = [4 * row + i for row in range(len(table))]
        values = [fitted[name] for _, fitted, _ in table]
        label += f' (uses {_number(report["r2"][name]["effective_rank"], 1)} of {report["channels"]} directions)'
        handles.append(axes.barh(heights, [value or 0 for value in values], 0.85, color=COLORS[name], label=label))
        for height, value, (_, _, copied) in zip(heights, values, table, strict=True):
            place = (max(value or 0, 0), height)
            axes.annotate(_number(value, 2), place, (4, 0), textcoords='offset points', va='center')
            if (copy := copied.get(name)) is not None:
                axes.plot(max(copy, floor), height, marker='D' if copy >= floor else '<', clip_on=False, **marks)
    handles += axes.plot([], [], marker='D', label='the same for copying the feature (◂: below -1)', **marks)
    axes.set_xlim(floor, 1.12)
    axes.axvline(0, color='black', lw=0.8)
    axes.set_yticks([4 * row + 1 for row in range(len(table))], [label for label, *_ in table], fontsize=11)
    axes.tick_params(axis='y', length=0)
    axes.invert_yaxis()
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.set_xlabel('R² on held-out images: 1 is exact, 0 is no better than the mean feature')
    axes.set_title(
        'Features predicted by a linear map, fitted by least squares.\n'
        'Features obey a law where a red bar exceeds its own diamond and the two bars below it.',
        fontsize=11,
    )
    return handles


def _draw_eigenvalues(generators: dict, axes: plt.Axes) -> None:
    styles = dict(A=('A, to the right', 'o', '#c1272d'), B=('B, down', '^', '#1f5fa8'))
    for name, (label, marker, color) in styles.items():
        real, imag = zip(*generators['eigenvalues'][name], strict=True)
        axes.plot(real, imag, marker, color=color, alpha=0.6, mec='none', label=label)
    axes.axhline(0, color='black', lw=0.8)
    axes.axvline(0, color='black', lw=0.8)
    axes.set_aspect('equal', adjustable='datalim')
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel('real part: features grow (right) or decay (left) over a quarter')
    axes.set_ylabel('imaginary part: features oscillate; radians over a quarter')
    axes.set_title(
        'Eigenvalues of the generators A and B, learned in pre-training.\n'
        f'||AB - BA|| / ||AB|| = {_number(generators["commutator"], 2)}, which is 0 where they commute.',
        fontsize=11,
    )
    axes.legend(frameon=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    args = parse_args(arguments)
    MMLogger.get_instance('heat_hypothesis', log_level='WARNING')  # the log would list every initialized parameter
    init_default_scope('mmpretrain')
    try:
        config = Config.fromfile(args.config)
        folder = args.data or config.get('train_dataloader', {}).get('dataset', {}).get('data_root', '')
        fit, held_out = build_loaders(folder, args.size, args.num_images, args.seed, args.batch_size, args.num_workers)
        checkpoint = guard(args.checkpoint, args.trust_checkpoint)
        report = examine(
            config, checkpoint, fit, held_out, args.size, args.level, args.seed, args.device or get_device()
        )
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        # An error in a worker holds its traceback; the last line is the message.
        sys.exit(f'heat_hypothesis: {str(error).strip().splitlines()[-1]}')
    report = dict(config=args.config, checkpoint=args.checkpoint, data=str(folder), seed=args.seed) | report
    paths = [args.out / f'heat_hypothesis.{suffix}' for suffix in ('json', 'png')]
    atomic_write(paths[0], json.dumps(report, indent=2).encode())
    draw(report, paths[1])
    print_table(report)
    print(f'Written: {paths[0]}, {paths[1]}')


if __name__ == '__main__':
    main()
