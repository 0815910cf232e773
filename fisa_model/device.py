"""Where a model runs and in what arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

DTYPE_OF = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By the names that configs have for them."""


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes with it, and float32 elsewhere."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def check_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for; None is the default.

    Raises:
        ValueError: torch has no such device, or this machine has none.
    """
    try:
        found = torch.device(default_device() if device is None else device)
        torch.empty(0, device=found)
        if found.type == "meta":
            raise TypeError("the meta device has no data")
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise ValueError(
            f"device {str(device)!r} is not one of this machine's; give 'cpu', 'cuda', 'cuda:<index>' or "
            f"'mps', or leave it out for {default_device()!r}"
        ) from error
    return found


def avoid_cudnn_attention(device: torch.device) -> None:
    """On a GPU, keep torch (in this process) from cuDNN's attention, which it prefers on Hopper and later.

    cuDNN makes a plan for each shape in each thread, which takes as long as some pictures do, and here every
    number of proposals or words is another shape. torch's own kernels need none.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work that does not wait, on a GPU, for what other threads have queued there; what it reads is finished.

    On the stream that threads share, each small result would wait for the others' image towers.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


def check_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The arithmetic that was asked for; None is the device's default."""
    if dtype is None:
        return default_dtype(device)
    if dtype not in DTYPES:
        accepted = ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype must be one of {accepted} or left out, got {dtype!r}")
    return dtype
