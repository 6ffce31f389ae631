"""Where ONNX Runtime spends the time of an ONNX file: a table of its operators, after its own optimizations.

    python tools/deployment/profile_ops.py model.onnx --threads 1

Images are random, of the size in the file's metadata or of --size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='an ONNX file of tools/deployment/export.py, or another one of images')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--size', type=int, help='side of the images; default that in the metadata')
    parser.add_argument('--rounds', type=int, default=20, help='runs to take the median of (%(default)s)')
    args = parser.parse_args(argv)
    if min(args.threads, args.rounds, 1 if args.size is None else args.size) < 1:
        parser.error('--threads, --rounds and --size must be larger than 0')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401 before mmcv, which may need its patches

# isort: split
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
from _runtime import METADATA, first_line


def profile(args: argparse.Namespace) -> dict[str, tuple[int, float]]:
    """The number of nodes of each operator, and their milliseconds in one run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be run, or no size is known.
    """
    import onnxruntime

    if not Path(args.file).is_file():
        raise FileNotFoundError(f'There is no file at "{args.file}".')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, 'profile'))
        try:
            session = onnxruntime.InferenceSession(args.file, options, providers=['CPUExecutionProvider'])
        except Exception as error:  # of ONNX Runtime
            raise ValueError(f'"{args.file}" cannot be loaded ({first_line(error)}).') from error
        metadata = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, '{}'))
        size = [args.size] * 2 if args.size else metadata.get('size')
        if not size:
            raise ValueError(f'"{args.file}" does not say the size of its images: give --size.')
        images = {session.get_inputs()[0].name: np.random.default_rng(0).random((1, 3, *size), np.float32)}
        try:
            for _ in range(args.rounds):
                session.run(None, images)
        except Exception as error:  # of ONNX Runtime
            reason = f'images of {size[0]} x {size[1]} ({first_line(error)})'
            raise ValueError(f'"{args.file}" does not run on {reason}.') from error
        events = json.loads(Path(session.end_profiling()).read_text())
    durations = defaultdict(list)
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
            durations[event['args']['op_name'], event['name']].append(event['dur'] / 1000)
    ops = defaultdict(lambda: (0, 0.0))
    for (op, _), times in durations.items():
        count, total = ops[op]
        ops[op] = count + 1, total + median(times)
    return dict(sorted(ops.items(), key=lambda item: -item[1][1]))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    try:
        ops = profile(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    total = sum(time for _, time in ops.values())
    print(f'{"operator":<28} {"nodes":>6} {"ms":>8} {"share":>7}')
    for op, (count, time) in ops.items():
        print(f'{op:<28} {count:>6} {time:>8.2f} {100 * time / total:>6.1f}%')
    print(f'{"all":<28} {sum(count for count, _ in ops.values()):>6} {total:>8.2f}')


if __name__ == '__main__':
    main()
