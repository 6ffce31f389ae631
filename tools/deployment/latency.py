"""Time Mobile-Former of all sizes beside other light networks, and write the table of docs/latency.md.

    python tools/deployment/latency.py --threads 1 2 --write docs/latency.md

All are classifiers of 1,000 classes as MMPretrain defines them, with random weights, for one image of 224 px: in
PyTorch as they are, and exported to ONNX in ONNX Runtime. Rounds over all of them alternate. ONNX files are kept in
--work-dir, so that a run that was cut off goes on. --write replaces what is between the two comments in the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

# Names of MMPretrain's configs, apart from Mobile-Former's sizes.
OTHERS = {
    'MobileNetV3-Large': 'mobilenet-v3-large_8xb128_in1k',
    'EfficientNet-B0': 'efficientnet-b0_3rdparty_8xb32_in1k',
    'ResNet-18': 'resnet18_8xb32_in1k',
    'ConvNeXt-atto': 'convnext-tiny_32xb128_in1k',
}
SIZES = ('26m', '52m', '96m', '151m', '214m', '285m', '294m', '508m')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, nargs='+', default=[1])
    parser.add_argument('--rounds', type=int, default=30, help='timed runs of each (%(default)s)')
    names = [*(f'Mobile-Former {size}' for size in SIZES), *OTHERS]
    parser.add_argument('--models', nargs='+', choices=names, default=names, metavar='NAME', help=', '.join(names))
    parser.add_argument('--work-dir', default='work_dirs/latency', help='of the ONNX files (%(default)s)')
    parser.add_argument('--write', metavar='PAGE', help='replace the table in this page')
    args = parser.parse_args(argv)
    if min(args.threads) < 1 or args.rounds < 1:
        parser.error('--threads and --rounds must be larger than 0')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401 before mmpretrain, which may need its patches
from qbheat_mm.apis.backbone import find_config
from qbheat_mm.checkpoint import atomic_write

# isort: split
import sys

import export
import torch
from _latency import WARM_UPS, summarize, time_calls, versions
from _runtime import load
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
MARKS = ('<!-- tools/deployment/latency.py -->\n', '<!-- end -->\n')
SIDE = 224


def build(name: str) -> nn.Module:
    """A classifier with random weights."""
    if name in OTHERS:
        model = find_config(OTHERS[name])[0].model
    else:
        size = name.rpartition(' ')[2]
        model = Config.fromfile(ROOT / f'configs/mobile_former/mobile-former-{size}_8xb128-coslr-450e_in1k.py').model
    if name == 'ConvNeXt-atto':
        model.backbone.arch, model.head.in_channels = 'atto', 320
    model.pop('train_cfg', None)  # mixes images
    model.pop('data_preprocessor', None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model).eval().requires_grad_(False)


def onnx_file(name: str, model: nn.Module, folder: Path) -> bytes:
    """The exported model, kept in a folder."""
    path = folder / f'{name.lower().replace(" ", "-")}.onnx'
    if not path.is_file():
        exported = export.Exported(model, (0.0,) * 3, (1.0,) * 3, bgr=False, normalize=False)
        metadata = dict(outputs=['logits'], size=[SIDE] * 2, batch_size=1, dynamic_size=False, resized_inside=False)
        atomic_write(path, export.export(exported, metadata, 'onnx'))
    return path.read_bytes()


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for each model: parameters, and times in PyTorch and ONNX Runtime for each number of threads in turn."""
    models = {name: build(name) for name in args.models}
    files = {name: onnx_file(name, model, Path(args.work_dir)) for name, model in models.items()}
    times = []
    images = torch.rand(1, 3, SIDE, SIDE)
    for threads in args.threads:
        torch.set_num_threads(threads)
        runs: dict[str, Callable] = {f'{name}/pytorch': model for name, model in models.items()}
        runs |= {f'{name}/onnx': load(content, threads)[0] for name, content in files.items()}
        calls = {name: lambda run=run: run(images) for name, run in runs.items()}
        with torch.inference_mode():
            time_calls(calls, WARM_UPS)
            times.append({name: summarize(each) for name, each in time_calls(calls, args.rounds).items()})
    return [
        dict(
            name=name,
            parameters=sum(each.numel() for each in model.parameters()),
            times=[each[f'{name}/{runtime}'] for each in times for runtime in ('pytorch', 'onnx')],
        )
        for name, model in models.items()
    ]


def to_markdown(rows: list[dict], args: argparse.Namespace) -> str:
    """The table, and what it belongs to."""
    head = [
        'model',
        'parameters',
        *(f'{runtime}, {count}' for count in args.threads for runtime in ('PyTorch', 'ONNX')),
    ]
    lines = [head, ['---'] * len(head)]
    for row in rows:
        cells = [f'{each["median_ms"]:.1f} ({each["min_ms"]:.1f})' for each in row['times']]
        lines.append([row['name'], f'{row["parameters"] / 1e6:.1f} M', *cells])
    table = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    about = ', '.join(f'{name} {value}' for name, value in versions().items())
    note = f'Milliseconds, median (fastest) of {args.rounds} rounds, by number of threads; {about}.'
    return f'{table}\n{note}\n'


def replace_table(page: Path, table: str) -> None:
    """Write the table between the two marks of a page.

    Raises:
        ValueError: If the page has no such marks.
    """
    text = page.read_text()
    before, found, rest = text.partition(MARKS[0])
    _, ending, after = rest.partition(MARKS[1])
    if not found or not ending:
        raise ValueError(f'"{page}" lacks the lines {MARKS[0].strip()} and {MARKS[1].strip()}.')
    atomic_write(page, (before + MARKS[0] + table + MARKS[1] + after).encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write it where it is asked for."""
    args = parse_args(argv)
    try:
        if args.write:
            Path(args.write).read_text()  # a page that is not there, before minutes of work
        table = to_markdown(measure(args), args)
        if args.write:
            replace_table(Path(args.write), table)
    except (export.ExportError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(table, end='')


if __name__ == '__main__':
    main()
