"""What benchmarks share: interleaved timing, peak memory, and the machine it was on."""

import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def interleave(
    functions: Mapping[str, Callable[[], object]], runs: int, device: str
) -> Iterator[tuple[str, float, int]]:
    """Name, seconds and peak bytes of every run, in turns, after one turn that warms up."""
    for run in range(runs + 1):
        for name, function in functions.items():
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            if run:
                yield name, seconds, peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Of the GPU since the last run began, or of this process since it began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine(device: str) -> dict[str, Any]:
    """What figures depend on, for the JSON line."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {
        "torch": torch.__version__,
        "hardware": name or platform.machine(),
        "threads": torch.get_num_threads(),
    }
