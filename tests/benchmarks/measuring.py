"""What benchmarks share: interleaved timing, peak memory, and the machine it was on."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
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
            _reset_peak(device)
            started = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            if run:
                yield name, seconds, peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Of the GPU, or of this process, since the last run began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # The process's peak is from now on what it holds now: proc(5), clear_refs.
        Path("/proc/self/clear_refs").write_text("5")


def print_rates(rates: Mapping[str, list[float]], *, over: str) -> float:
    """Images per second of two sides, as medians of their runs; returns the ratio of one over `over`."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:10}{medians[name]:8.2f} images/s  ({', '.join(f'{value:.2f}' for value in values)})")
    base = medians.pop(over)
    (other,) = medians.values()
    print(f"ratio {other / base:.3f}")
    return other / base


def machine(device: str) -> dict[str, Any]:
    """What figures depend on, for the JSON line."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {
        "torch": torch.__version__,
        "hardware": name or platform.machine(),
        "threads": torch.get_num_threads(),
    }
