"""Measure on any backbone how well its features obey z_x = A z, z_y = B z, beside the controls that this takes.

    python tools/analysis_tools/heat_hypothesis.py CONFIG CHECKPOINT --data FOLDER

Linear maps are fitted on one half of the images and judged by R^2 on the other half: they predict the features one
cell and one quarter of the map away, and the horizontal derivative from the vertical one. A high R^2 alone says
little: it rises when features are merely smooth, or have collapsed. So the same is measured on the same images
for the architecture with random weights (what overlapping receptive fields give for free) and for the trained
features with their positions shuffled within each image (what knowing the image gives), and beside R^2 stand that
of copying z(x), the number of channels and the effective rank.

Features are those of whole images, as the backbone gives them. Writes heat_hypothesis.json and heat_hypothesis.png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor, revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.registry import MODELS, TRANSFORMS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import qbheat_mm  # noqa: F401, registers the models
from qbheat_mm.checkpoint import TRUST_HELP, CheckpointError, guard, load_pretrained, read_state_dict, select_prefix
from qbheat_mm.datasets.image_folder import find_images
from qbheat_mm.heat import CommutingGenerators, commutator, derivative_relation, effective_rank, fit_generators

matplotlib.use('Agg')
from matplotlib import pyplot as plt

SOURCES = {
    'trained': 'trained',
    'random': 'random weights: what the architecture gives for free',
    'shuffled': 'trained, positions shuffled within each image: what knowing the image gives',
}
COLORS = {'trained': '#c1272d', 'random': '#5b7fa6', 'shuffled': '#b9b9b9'}


# --- Images --------------------------------------------------------------------------------------------------------


class Images(Dataset):
    """Images, resized (short side 8 / 7 of ``size``) and cropped at the center to ``size`` px."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.size = size
        steps = [
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=math.ceil(size * 8 / 7), edge='short', backend='pillow'),
            dict(type='CenterCrop', crop_size=size),
            dict(type='PackInputs'),
        ]
        self.pipeline = Compose([TRANSFORMS.build(step) for step in steps])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        try:
            return self.pipeline(dict(img_path=str(self.paths[index])))
        except Exception as error:
            raise ValueError(f'"{self.paths[index]}" is not a image that can be read: {error}') from error


def split_images(folder: str | Path, size: int, count: int, seed: int = 0) -> tuple[Images, Images]:
    """Draw images from a folder and halve them.

    Args:
        folder: Any tree of images.
        size: Side of what is read from them, in px.
        count: How many to draw; all where there are fewer.
        seed: Of the draw.

    Returns:
        The images to fit on, and those held out.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it would be fewer than four images.
    """
    if not folder or not Path(folder).is_dir():
        raise FileNotFoundError(f'There is no folder "{folder}". Name a folder of images with --data.')
    paths = find_images(folder)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[: max(count, 0)].tolist()
    if len(order) < 4:
        raise ValueError(f'{len(order)} images from "{folder}" are too few: 4 at the least, hundreds are sensible.')
    half = len(order) // 2
    return tuple(Images([paths[i] for i in part], size) for part in (order[:half], order[half:]))


def build_preprocessor(config: Config) -> ImgDataPreprocessor:
    """What normalizes images as the config's own ``data_preprocessor`` does."""
    settings = config.get('model', {}).get('data_preprocessor') or config.get('data_preprocessor') or {}
    to_rgb = settings.get('to_rgb', settings.get('bgr_to_rgb', False))
    return ImgDataPreprocessor(mean=settings.get('mean'), std=settings.get('std'), bgr_to_rgb=to_rgb)


class Batches:
    """Normalized batches (N, 3, size, size) of images, as often as they are asked for."""

    def __init__(
        self, images: Images, preprocessor: ImgDataPreprocessor, batch_size: int = 32, num_workers: int = 0
    ) -> None:
        self.preprocessor = preprocessor
        self.loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=pseudo_collate)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            yield self.preprocessor(batch)['inputs']


# --- Networks and their features -------------------------------------------------------------------------------------


def build_backbone(config: Config) -> nn.Module:
    """The config's backbone; a ``Pretrained`` initialization is left out.

    Raises:
        ValueError: If the config has none.
    """
    if 'backbone' not in config.get('model', {}):
        raise ValueError(f'{config.filename or "The config"} has no model.backbone.')
    settings = dict(config.model.backbone)
    if 'Pretrained' in str(settings.get('init_cfg')):
        del settings['init_cfg']
    return revert_sync_batchnorm(MODELS.build(settings))


def load_backbone(config: Config, checkpoint: str | Path) -> nn.Module:
    """The config's backbone with the checkpoint's weights: those under ``backbone.``, or all where none are.

    Raises:
        CheckpointError: If they do not fit.
    """
    backbone = build_backbone(config)
    has_prefix = any(key.startswith('backbone.') for key in read_state_dict(checkpoint))
    load_pretrained(backbone, checkpoint, 'backbone.' if has_prefix else None)
    backbone.eval()  # returns None in mmpretrain's own backbones
    return backbone


def random_backbone(config: Config, seed: int = 0) -> nn.Module:
    """The config's backbone as it is before training."""
    torch.manual_seed(seed)
    backbone = build_backbone(config)
    backbone.init_weights()
    backbone.eval()
    return backbone


@torch.no_grad()
def calibrate_batch_norm(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every BatchNorm the statistics of ``batches``: with those it is born with, signals fade with depth."""
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()  # and nothing else: no dropout, no stochastic depth
    for batch in batches if norms else ():
        backbone(batch)
    for norm in norms:
        norm.eval()


@torch.no_grad()
def extract(backbone: nn.Module, batches: Iterable[Tensor], level: int = -1) -> list[Tensor]:
    """The backbone's feature maps (N, C, H, W), on the CPU.

    Args:
        backbone: An mmpretrain backbone.
        batches: Images (N, 3, H, W).
        level: Which of its spatial outputs; -1 is the last.

    Raises:
        ValueError: If it has no such spatial output.
    """
    features = []
    for batch in batches:
        outputs = backbone(batch)
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        maps = [output for output in outputs if isinstance(output, Tensor) and output.ndim == 4]
        if not -len(maps) <= level < len(maps):
            raise ValueError(
                f'{type(backbone).__name__} gives {len(maps)} feature maps (N, C, H, W), and level={level} is none of '
                "them. Choose another --level, or the backbone's out_indices (out_type='featmap' where it has one)."
            )
        features.append(maps[level].cpu())
    return features


def shuffle_positions(features: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    """The features with the cells of each image in a random order, another one for each."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = []
    for batch in features:
        cells = batch.flatten(2)  # (N, C, HW)
        order = torch.rand(len(cells), 1, cells.shape[2], generator=generator).argsort(dim=2).to(cells.device)
        shuffled.append(cells.gather(2, order.expand_as(cells)).view_as(batch))
    return shuffled


# --- Measuring -------------------------------------------------------------------------------------------------------


def measure(features: Sequence[Tensor], held_out: Sequence[Tensor]) -> dict:
    """Fit on ``features``, judge on ``held_out``.

    Args:
        features: Batches of maps (N, C, H, W); the smaller side is of an even number of cells.
        held_out: Batches like them.

    Returns:
        R^2 of the value, ``x`` and ``y``, and of copying, ``copy_x`` and ``copy_y``, under ``one_cell`` and
        ``quarter``; R^2 of the derivative relation; the effective rank. None where features do not vary.
    """

    def value(displacement: int) -> dict:
        fit = fit_generators(features, displacement, held_out=held_out)
        r2 = dict(x=fit.r2_x, y=fit.r2_y, copy_x=fit.copy_r2_x, copy_y=fit.copy_r2_y)
        return {key: _finite(number) for key, number in r2.items()}

    return dict(
        one_cell=value(1),
        quarter=value(min(features[0].shape[2:]) // 2),
        derivative=_finite(derivative_relation(features, held_out).r2),
        effective_rank=_finite(effective_rank(held_out)),
    )


def _finite(number: float) -> float | None:
    """JSON has no nan."""
    return number if math.isfinite(number) else None


def learned_generators(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The generators that a checkpoint's neck has learned.

    Args:
        state_dict: Of the whole model.

    Returns:
        ``A`` (along x) and ``B`` (along y), (..., C, C), several where each direction has its own; nothing where the
        checkpoint has none.
    """
    neck = {key: value.float() for key, value in state_dict.items() if key.startswith('neck.')}
    for key in neck:
        if key.endswith('.generator_x') and (partner := key[:-1] + 'y') in neck:
            return {'A': neck[key], 'B': neck[partner]}
        if key.endswith('.skew'):  # generators that share a basis: those along x, then those along y
            weights = select_prefix(neck, key.removesuffix('skew'), 'the checkpoint')
            module = CommutingGenerators(len(weights['skew']), len(weights['real']))
            module.load_state_dict(weights)
            return dict(zip('AB', torch.stack(module()).detach().chunk(2), strict=True))
    return {}


def describe_generators(generators: dict[str, Tensor]) -> dict:
    """Eigenvalues as [real, imaginary] pairs, per quarter, and ||AB - BA|| / ||AB||."""
    if not generators:
        return {}
    eigenvalues = {
        name: torch.view_as_real(torch.linalg.eigvals(generator.double())).flatten(0, -2).tolist()
        for name, generator in generators.items()
    }
    A, B = generators['A'], generators['B']
    return dict(eigenvalues=eigenvalues, commutator=_finite(float(commutator(A, B).norm() / (A @ B).norm())))


def examine(
    config: Config, checkpoint: str | Path, fit: Batches, held_out: Batches, level: int = -1, seed: int = 0
) -> dict:
    """Measure a checkpoint and its controls.

    Args:
        config: Its ``model.backbone`` builds a backbone of mmpretrain.
        checkpoint: Its trained weights, with or without a neck.
        fit: Images to fit on; the networks run on their device.
        held_out: Images to judge on.
        level: Which spatial output of the backbone.
        seed: Of the random weights and the shuffling.

    Returns:
        All numbers, ready for JSON.

    Raises:
        CheckpointError: If the checkpoint does not fit the config.
        ValueError: If the map has no whole quarters, or the backbone no such output.
    """
    device = fit.preprocessor.device
    trained, random = load_backbone(config, checkpoint).to(device), random_backbone(config, seed).to(device)
    features = [extract(trained, batches, level) for batches in (fit, held_out)]
    size = fit.loader.dataset.size
    channels, height, width = features[0][0].shape[1:]
    if height % 2 or width % 2:
        raise ValueError(
            f'Images of {size} px give a map of {height} x {width} cells, which has no whole quarters. Choose '
            f'another --size, a multiple of {2 * round(size / height)} as a rule, or an earlier --level.'
        )
    r2 = dict(trained=measure(*features))
    shuffled = measure(*(shuffle_positions(half, seed) for half in features))
    images = [sum(map(len, half)) for half in features]
    del features
    calibrate_batch_norm(random, fit)
    r2['random'] = measure(*(extract(random, batches, level) for batches in (fit, held_out)))
    return dict(
        backbone=type(trained).__name__,
        channels=channels,
        map=[height, width],
        stride=round(size / height),
        quarter=height // 2,
        images=dict(fit=images[0], held_out=images[1], size=size),
        r2=r2 | dict(shuffled=shuffled),
        generators=describe_generators(learned_generators(read_state_dict(checkpoint))),
    )


# --- Showing ---------------------------------------------------------------------------------------------------------


def rows(report: dict) -> list[tuple[str, dict, dict]]:
    """What is compared: its name, and per source R^2 and R^2 of copying."""
    table = []
    for distance, field in (
        ('one cell', 'one_cell'),
        (f'one quarter ({report["quarter"]} cells)', 'quarter'),
    ):
        for direction, axis in (('right', 'x'), ('down', 'y')):
            fitted = {name: measured[field][axis] for name, measured in report['r2'].items()}
            copied = {name: measured[field][f'copy_{axis}'] for name, measured in report['r2'].items()}
            table.append((f'{distance} {direction}', fitted, copied))
    derivative = {name: measured['derivative'] for name, measured in report['r2'].items()}
    return [*table, ('horizontal derivative\nfrom vertical one', derivative, {})]


def caveats(report: dict) -> list[str]:
    """What makes these numbers less than they look."""
    height, width = report['map']
    pairs = report['images']['fit'] * min(height * report['quarter'], (height - 2) * (width - 2))
    if pairs >= 10 * report['channels']:
        return []
    return [f'Only {pairs} pairs of cells for {report["channels"]} channels: R² is too low. Use more images.']


def _number(value: float | None, digits: int = 3) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def print_table(report: dict) -> None:
    """R^2 on the held-out images, that of copying in brackets."""
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
    console.print(table)
    if report['generators']:
        console.print(f'Learned A and B: ||AB - BA|| / ||AB|| = {_number(report["generators"]["commutator"])}')
    for caveat in caveats(report):
        console.print(f'Caution: {caveat}')


def draw(report: dict, path: str | Path) -> None:
    """The table and, where the checkpoint has any, the eigenvalues of A and B as one image."""
    generators, images = report['generators'], report['images']
    figure = plt.figure(figsize=(15, 8) if generators else (10, 8), layout='constrained')
    panels = figure.subplots(1, 2, width_ratios=[1.35, 1]) if generators else [figure.subplots()]
    figure.suptitle(f'Do the features of {report["backbone"]} obey z_x = A z and z_y = B z?', fontsize=15)
    _draw_r2(report, panels[0])
    if generators:
        _draw_eigenvalues(generators, panels[1])
    handles, labels = panels[0].get_legend_handles_labels()
    order = [1, 2, 3, 0]  # the bars, then the diamond, which matplotlib puts first
    caption = (
        f'{report["channels"]} channels, stride {report["stride"]}, {report["map"][0]} x {report["map"][1]} cells; '
        f'fitted on {images["fit"]} images of {images["size"]} px, judged on {images["held_out"]} others.'
    )
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        title='\n'.join([caption, *caveats(report)]),
        alignment='left',
        loc='outside lower left',
        frameon=False,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_r2(report: dict, axes: plt.Axes) -> None:
    table = rows(report)
    floor = -1.0
    axes.set_xlim(floor, 1.12)
    for i, (name, label) in enumerate(SOURCES.items()):
        heights = [4 * row + i for row in range(len(table))]
        values = [fitted[name] for _, fitted, _ in table]
        rank = _number(report['r2'][name]['effective_rank'], 1)
        axes.barh(
            heights,
            [value or 0 for value in values],
            height=0.85,
            color=COLORS[name],
            label=f'{label} (uses {rank} of {report["channels"]} directions)',
        )
        for height, value in zip(heights, values, strict=True):
            axes.annotate(
                _number(value, 2), (max(value or 0, 0), height), (4, 0), textcoords='offset points', va='center'
            )
        for height, (_, _, copied) in zip(heights, table, strict=True):
            if copied.get(name) is not None:
                inside = copied[name] >= floor
                axes.plot(
                    max(copied[name], floor), height, 'D' if inside else '<', mfc='white', mec='black', clip_on=False
                )
    axes.plot([], [], 'D', mfc='white', mec='black', label='the same, where the feature is merely copied (◂: below -1)')
    axes.axvline(0, color='black', lw=0.8)
    axes.set_yticks([4 * row + 1 for row in range(len(table))], [label for label, *_ in table], fontsize=11)
    axes.tick_params(axis='y', length=0)
    axes.invert_yaxis()
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.set_xlabel('R² on held-out images: 1 is exact, 0 is no better than the mean feature')
    axes.set_title(
        'Features predicted by a linear map, fitted by least squares.\n'
        'A law shows where a red bar exceeds its own diamond and the two bars below it.',
        fontsize=11,
    )


def _draw_eigenvalues(generators: dict, axes: plt.Axes) -> None:
    for values, label, marker, color in zip(
        generators['eigenvalues'].values(), ('A, to the right', 'B, down'), 'o^', ('#c1272d', '#1f5fa8'), strict=True
    ):
        real, imag = zip(*values, strict=True)
        axes.plot(real, imag, marker, color=color, alpha=0.6, mec='none', label=label)
    axes.axhline(0, color='black', lw=0.8)
    axes.axvline(0, color='black', lw=0.8)
    axes.set_aspect('equal', adjustable='datalim')
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel('real part: features grow (right) or decay (left) over a quarter')
    axes.set_ylabel('imaginary part: features oscillate; radians over a quarter')
    axes.set_title(
        'Eigenvalues of the generators A and B learned in pre-training.\n'
        f'||AB - BA|| / ||AB|| = {_number(generators["commutator"], 2)}, which is 0 where they commute.',
        fontsize=11,
    )
    axes.legend(frameon=False)


# --- The command line ------------------------------------------------------------------------------------------------


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose model.backbone builds a backbone of mmpretrain')
    parser.add_argument('checkpoint', help='its weights: a whole model, or a backbone alone')
    parser.add_argument('--trust-checkpoint', action='store_true', help=TRUST_HELP)
    parser.add_argument('--data', help="folder of images, any tree; else the data_root of the config's training set")
    parser.add_argument('--out', default='work_dirs/heat_hypothesis', help='folder for the JSON and the figure')
    parser.add_argument('--device', default=get_device(), help='where the networks run (%(default)s)')
    parser.add_argument('--size', type=int, default=224, help='side of the images in px (%(default)s)')
    parser.add_argument('--num-images', type=int, default=1000, help='drawn from the folder (%(default)s)')
    parser.add_argument('--level', type=int, default=-1, help='which spatial output of the backbone (the last)')
    parser.add_argument('--batch-size', type=int, default=32, help='images at a time (%(default)s)')
    parser.add_argument('--num-workers', type=int, default=2, help='processes that read images (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the draw, the random weights, the shuffling')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    args = parse_args(arguments)
    MMLogger.get_instance('heat_hypothesis', log_level='WARNING')  # or every initialized parameter is printed
    init_default_scope('mmpretrain')
    try:
        config = Config.fromfile(args.config)
        folder = args.data or config.get('train_dataloader', {}).get('dataset', {}).get('data_root', '')
        preprocessor = build_preprocessor(config).to(args.device)
        fit, held_out = (
            Batches(half, preprocessor, args.batch_size, args.num_workers)
            for half in split_images(folder, args.size, args.num_images, args.seed)
        )
        report = examine(config, guard(args.checkpoint, args.trust_checkpoint), fit, held_out, args.level, args.seed)
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        # A process that reads images sends its whole traceback; what is wrong stands at its end.
        sys.exit(f'heat_hypothesis: {str(error).strip().splitlines()[-1]}')
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    report = dict(config=args.config, checkpoint=args.checkpoint, data=str(folder), seed=args.seed) | report
    (out / 'heat_hypothesis.json').write_text(json.dumps(report, indent=2))
    draw(report, out / 'heat_hypothesis.png')
    print_table(report)
    print(f'Written: {out / "heat_hypothesis.json"}, {out / "heat_hypothesis.png"}')


if __name__ == '__main__':
    main()
