"""Reads the `.pkl` checkpoints of detectron2 without running what a pickle may ask for.

A pickle names functions for the reader to call. Here only those that rebuild a numpy array are found, so that
an unknown file can do no more than fail.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a checkpoint by name: those under its key `model`, or the whole where it has none."""
    try:
        with path.open("rb") as stream:
            # Text of Python 2 is read as Latin-1, as detectron2 does.
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as a pickle of arrays: {error}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError(f"{path}: must hold a dictionary of arrays, got {type(tensors).__name__}")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(f"{path}: must hold arrays of numbers by name, got {name!r}: {kind}")
    return dict(tensors)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved its core; files keep the name of the version that wrote them.
        module = module.replace("numpy.core.", "numpy._core.", 1)
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is refused: a checkpoint needs no more than numpy "
                "arrays, dictionaries, lists, numbers and strings"
            )
        return super().find_class(module, name)


# What pickle and numpy raise over bytes that are no checkpoint.
_UNREADABLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
