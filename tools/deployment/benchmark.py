"""Time exported files on the CPU: the latency's median and 95th percentile, for each number of threads.

    python tools/deployment/benchmark.py model.onnx model.pt model.pt2 --threads 1 2 --json latency.json

ONNX models run in ONNX Runtime, TorchScript and programs of torch.export in PyTorch. Images are random, of the size in
the file's metadata or of --size. Rounds over all files alternate, so that a busy machine slows all alike. PyTorch's
files can hold code: time only files that you trust.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='files of tools/deployment/export.py, or other ONNX models of images')
    parser.add_argument('--threads', type=int, nargs='+', default=[1])
    parser.add_argument('--size', type=int, help='side of the images; default that in the metadata')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=50, help='timed runs of each file (%(default)s)')
    parser.add_argument('--json', help='write the figures to this file')
    args = parser.parse_args(argv)
    for name in ('batch_size', 'rounds', 'size'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be larger than 0')
    if min(args.threads) < 1:
        parser.error('--threads must be larger than 0')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import json
import platform
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from _runtime import format_of, load

from qbheat_mm.checkpoint import atomic_write

WARM_UPS = 3


def prepare(path: str, threads: int, args: argparse.Namespace) -> Callable[[], object]:
    """A call that runs a file on images of its size.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be run, or no size is known.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file at "{path}".')
    try:
        run, metadata = load(Path(path).read_bytes(), threads)
    except Exception as error:  # of three runtimes
        raise ValueError(f'"{path}" cannot be loaded ({_first_line(error)}).') from error
    size = [args.size] * 2 if args.size else metadata.get('size')
    if not size:
        raise ValueError(f'"{path}" does not say the size of its images: give --size.')
    images = torch.rand(args.batch_size, 3, *size)

    def call() -> object:
        with torch.inference_mode():
            return run(images)

    try:
        for _ in range(WARM_UPS):
            call()
    except Exception as error:
        raise ValueError(f'"{path}" does not run on {tuple(images.shape)} ({_first_line(error)}).') from error
    return call


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def time_calls(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The milliseconds of each call, in rounds over all of them."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append(1000 * (perf_counter() - start))
    return times


def summarize(times: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return dict(median_ms=float(np.median(times)), p95_ms=float(np.percentile(times, 95)))


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for each file and number of threads."""
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        calls = {path: prepare(path, threads, args) for path in dict.fromkeys(args.files)}
        for path, times in time_calls(calls, args.rounds).items():
            content = Path(path).read_bytes()
            row = dict(file=path, format=format_of(content), mib=len(content) / 2**20, threads=threads)
            rows.append(row | summarize(times))
    return rows


def versions() -> dict[str, str | None]:
    """What the figures belong to."""
    onnxruntime = sys.modules.get('onnxruntime')  # where an ONNX model was timed
    return dict(
        machine=platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        onnxruntime=onnxruntime.__version__ if onnxruntime else None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    try:
        rows = measure(args)
        if args.json:
            figures = dict(batch_size=args.batch_size, rounds=args.rounds, **versions(), rows=rows)
            atomic_write(args.json, (json.dumps(figures, indent=2) + '\n').encode())
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error.strerror if isinstance(error, OSError) and error.strerror else error}')
    width = max(len(row['file']) for row in rows)
    print(f'{"file":<{width}} {"format":<12} {"MiB":>7} {"threads":>7} {"median ms":>10} {"p95 ms":>8}')
    for row in rows:
        print(
            f'{row["file"]:<{width}} {row["format"]:<12} {row["mib"]:>7.1f} {row["threads"]:>7} '
            f'{row["median_ms"]:>10.2f} {row["p95_ms"]:>8.2f}'
        )


if __name__ == '__main__':
    main()
