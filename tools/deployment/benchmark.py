"""Time models on the CPU side by side: latency, memory and size, for each number of threads.

    python tools/deployment/benchmark.py model.onnx model-int8.onnx model.pt2 --threads 1 2 --json latency.json
    python tools/deployment/benchmark.py backbone.onnx --eager CONFIG CHECKPOINT --backbone

ONNX models run in ONNX Runtime, TorchScript and programs of torch.export in PyTorch; --eager adds the model of a config
in PyTorch as it is, with the arguments of tools/deployment/export.py. Images are random, of the size in the file's
metadata or of --size. Rounds over all of them alternate, so that a busy machine slows all alike. Memory is what loading
and running a model adds to the process. PyTorch's files can hold code: time only files that you trust.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='files of tools/deployment/export.py, or other ONNX models of images')
    parser.add_argument('--eager', nargs='+', metavar='CONFIG', help='a config, and its checkpoint, to run in PyTorch')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone of --eager')
    parser.add_argument('--threads', type=int, nargs='+', default=[1])
    parser.add_argument('--size', type=int, help='side of the images; default that in the metadata')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=50, help='timed runs of each model (%(default)s)')
    parser.add_argument('--json', help='write the figures to this file')
    args = parser.parse_args(argv)
    for name in ('batch_size', 'rounds', 'size'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be larger than 0')
    if min(args.threads) < 1:
        parser.error('--threads must be larger than 0')
    if args.eager and len(args.eager) > 2:
        parser.error('--eager takes a config and a checkpoint; name the files first')
    if args.backbone and not args.eager:
        parser.error('--backbone needs --eager')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401 before mmcv, which may need its patches
from qbheat_mm.checkpoint import CheckpointError, atomic_write

# isort: split
import json
from pathlib import Path

import export
import torch
from _latency import WARM_UPS, resident_mib, summarize, time_calls, versions
from _runtime import check_writable, first_line, format_of, load

MIB = 2**20
Run = Callable[[torch.Tensor], object]


def open_file(path: str, threads: int) -> tuple[Run, dict, dict]:
    """A function of images, the metadata of a file, and its columns of the table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file at "{path}".')
    content = Path(path).read_bytes()
    try:
        run, metadata = load(content, threads)
    except Exception as error:  # of three runtimes
        raise ValueError(f'"{path}" cannot be loaded ({first_line(error)}).') from error
    format = format_of(content) + (' int8' if metadata.get('quantized') else '')
    return run, metadata, dict(format=format, mib=len(content) / MIB)


def open_eager(args: argparse.Namespace) -> tuple[Run, dict, dict]:
    """As :func:`open_file`, for the model of a config."""
    options = ['--backbone'] * args.backbone + (['--size', str(args.size)] if args.size else [])
    model, metadata = export.build(export.parse_args([*args.eager, '--to', 'exported', '--out', '-', *options]))
    size = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    return model, metadata, dict(format='eager', mib=size / MIB)


def prepare(name: str, run: Run, metadata: dict, args: argparse.Namespace) -> Callable[[], object]:
    """A call that runs a model on images of its size, warmed up.

    Raises:
        ValueError: If it cannot be run, or no size is known.
    """
    size = [args.size] * 2 if args.size else metadata.get('size')
    if not size:
        raise ValueError(f'"{name}" does not say the size of its images: give --size.')
    images = torch.rand(args.batch_size, 3, *size)

    def call() -> object:
        with torch.inference_mode():
            return run(images)

    try:
        for _ in range(WARM_UPS):
            call()
    except Exception as error:
        raise ValueError(f'"{name}" does not run on {tuple(images.shape)} ({first_line(error)}).') from error
    return call


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for each model and number of threads."""
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        calls, columns = {}, {}
        for name in dict.fromkeys([*args.files, *(args.eager or ())[:1]]):
            before = resident_mib()
            is_eager = args.eager and name == args.eager[0]
            run, metadata, columns[name] = open_eager(args) if is_eager else open_file(name, threads)
            calls[name] = prepare(name, run, metadata, args)
            columns[name]['memory_mib'] = None if before is None else resident_mib() - before
        for name, times in time_calls(calls, args.rounds).items():
            rows.append(dict(file=name, **columns[name], threads=threads, **summarize(times)))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    try:
        if args.json:
            check_writable(Path(args.json), replace=True)
        rows = measure(args)
        if args.json:
            figures = dict(batch_size=args.batch_size, rounds=args.rounds, **versions(), rows=rows)
            atomic_write(args.json, (json.dumps(figures, indent=2) + '\n').encode())
    except (CheckpointError, export.ExportError, OSError, ValueError) as error:
        sys.exit(f'error: {error.strerror if isinstance(error, OSError) and error.strerror else error}')
    width = max(len(row['file']) for row in rows)
    head = f'{"MiB":>7} {"memory":>7} {"threads":>7} {"min ms":>8} {"median ms":>10} {"p95 ms":>8}'
    print(f'{"file":<{width}} {"format":<12} {head}')
    for row in rows:
        memory = '' if row['memory_mib'] is None else f'{row["memory_mib"]:.0f}'
        print(
            f'{row["file"]:<{width}} {row["format"]:<12} {row["mib"]:>7.1f} {memory:>7} {row["threads"]:>7} '
            f'{row["min_ms"]:>8.2f} {row["median_ms"]:>10.2f} {row["p95_ms"]:>8.2f}'
        )


if __name__ == '__main__':
    main()
