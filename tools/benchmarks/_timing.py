"""What the benchmarks share: a clock that waits for the device, rounds over alternatives."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

MIB = 2**20


def use_device(args: argparse.Namespace) -> None:
    """Set the number of threads, and make ``args.device`` PyTorch's."""
    torch.set_num_threads(args.threads)
    args.device = torch.device(args.device)


class Clock:
    """Seconds until the device has finished its work: wall time, or this process' processor time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.read = process_time if args.cpu_time else perf_counter
        self.on_gpu = args.device.type == 'cuda'

    def __call__(self) -> float:
        """Now, when the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return self.read()

    def time(self, function: Callable[..., object], *args) -> float:
        """How long a call takes."""
        start = self()
        function(*args)
        return self() - start


def median_rounds(steps: dict[str, Callable[[], object]], rounds: int, clock: Clock) -> dict[str, float]:
    """The median seconds of each, in rounds over all after a warm-up, so that a drifting machine slows all alike."""
    times = [{name: clock.time(step) for name, step in steps.items()} for _ in range(rounds + 1)]
    return {name: median(each[name] for each in times[1:]) for name in steps}


def setting(args: argparse.Namespace, *names: str) -> dict:
    """What the figures belong to: some of the options, and the machine."""
    if args.device.type == 'cuda':
        processor = torch.cuda.get_device_name(args.device)
    else:
        names_of_cpu = [
            line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')
        ]
        processor = names_of_cpu[0].split(':')[1].strip() if names_of_cpu else platform.machine()
    return {name: getattr(args, name) for name in (*names, 'rounds', 'threads')} | dict(
        processor=processor,
        clock='processor time' if args.cpu_time else 'wall time',
        torch=torch.__version__,
        python=platform.python_version(),
    )


def write_json(path: Path | None, figures: dict) -> None:
    """Write the figures where it was asked for."""
    if path:
        path.write_text(json.dumps(figures, indent=2) + '\n')
