"""Timing models side by side."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

WARM_UPS = 3


def time_calls(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The milliseconds of each call, in rounds over all of them, so that a busy machine slows all alike."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append(1000 * (perf_counter() - start))
    return times


def summarize(times: list[float]) -> dict[str, float]:
    """Fastest, median and 95th percentile; the fastest is what other processes disturbed least."""
    return dict(min_ms=min(times), median_ms=float(np.median(times)), p95_ms=float(np.percentile(times, 95)))


def resident_mib() -> float | None:
    """The memory of this process; None where /proc does not say."""
    status = Path('/proc/self/status')
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith('VmRSS:')), None)


def versions() -> dict[str, str | None]:
    """What the figures belong to."""
    onnxruntime = sys.modules.get('onnxruntime')  # where an ONNX model was timed
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return dict(
        machine=platform.machine(),
        processor=names[0] if names else None,
        python=platform.python_version(),
        torch=torch.__version__,
        onnxruntime=onnxruntime.__version__ if onnxruntime else None,
    )
