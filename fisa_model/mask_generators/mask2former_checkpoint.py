"""Converts a published checkpoint of Mask2Former to a folder that transformers loads.

From a pickle in detectron2's names to `config.json` and `model.safetensors` in those of the hub.
"""

import hashlib
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators.detectron2_pickle import read_checkpoint
from fisa_model.mask_generators.mask2former_architectures import Architecture, describe, read_architecture
from fisa_model.mask_generators.mask2former_names import hub_names


def convert_checkpoint(source_path: Path, output_path: Path, *, any_checksum: bool = False) -> str:
    """Writes the folder, whole or not at all, and says what the checkpoint holds.

    Args:
        source_path: a `.pkl` file of Mask2Former's model zoo.
        output_path: the folder to make; there must be nothing yet.
        any_checksum: accept a file whose sha256 does not begin with the digits at the end of its name.
    """
    if not source_path.is_file():
        raise ValueError(f"{source_path}: no such file; check the path")
    if output_path.exists():
        raise ValueError(f"{output_path}: exists already; choose another folder or remove it")
    digest = _sha256(source_path)
    if not any_checksum:
        _check_digest(source_path, digest)
    arrays = read_checkpoint(source_path)
    try:
        architecture = read_architecture({name: array.shape for name, array in arrays.items()})
        tensors = convert_tensors(arrays)
    except ValueError as error:
        raise ValueError(f"{source_path}: {error}") from error
    output_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_path.parent, prefix=f".{output_path.name}-") as parent:
        folder = Path(parent, "folder")
        _write(folder, architecture, tensors, {"source": source_path.name, "source_sha256": digest})
        if problem := _problem_of(folder):
            raise ValueError(f"{source_path}: {problem}; the file does not fit {describe(architecture)}")
        folder.rename(output_path)
    return describe(architecture)


def convert_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The tensors of detectron2 under the hub's names; each is used once, or refused.

    Args:
        arrays: by detectron2's name, without a prefix.
    """
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if name.endswith(".relative_position_index"):
            _check_index(name, array)
            continue
        targets = hub_names(name)
        for target, part in zip(targets, _parts(name, array, len(targets)), strict=True):
            if target in tensors:
                raise ValueError(f"tensor {name!r} is there under another name as well")
            tensors[target] = part
    return _unused(tensors) | tensors


def _unused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' modules hold, detectron2's may lack, and no mask depends on."""
    counters = [name for name in tensors if name.endswith(".running_var")]
    unused = {name.replace("running_var", "num_batches_tracked"): torch.tensor(0) for name in counters}
    encoder = "model.pixel_level_module.encoder"
    if (last := tensors.get(f"{encoder}.hidden_states_norms.stage4.weight")) is not None:
        # The norm of a Swin that classifies.
        unused[f"{encoder}.swin.layernorm.weight"] = torch.ones_like(last)
        unused[f"{encoder}.swin.layernorm.bias"] = torch.zeros_like(last)
    return unused


def _parts(name: str, array: NDArray[Any], count: int) -> list[Tensor]:
    """A tensor in float32, or in `count` equal parts of its rows."""
    kind = np.float32 if array.dtype.kind == "f" else np.int64
    tensor = torch.from_numpy(np.array(array, dtype=kind))
    if count == 1:
        return [tensor]
    if tensor.ndim == 0 or len(tensor) % count:
        raise ValueError(f"tensor {name!r} must have rows for {count} equal parts, got shape {array.shape}")
    return [part.contiguous() for part in tensor.chunk(count)]


def _check_index(name: str, index: NDArray[Any]) -> None:
    """Refuses an order of relative positions that is not Swin's own, which transformers computes."""
    side = math.isqrt(len(index)) if index.ndim == 2 else 0
    place = np.stack(np.divmod(np.arange(side * side), side))
    rows, columns = place[:, :, None] - place[:, None, :] + side - 1
    if not np.array_equal(index, rows * (2 * side - 1) + columns):
        raise ValueError(f"tensor {name!r} is not the order of relative positions that Swin has")


def _write(
    folder: Path, architecture: Architecture, tensors: dict[str, Tensor], source: dict[str, str]
) -> None:
    config = architecture.config()
    config.architectures = [Mask2FormerForUniversalSegmentation.__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    weights_path = folder / "model.safetensors"
    save_file(tensors, weights_path, metadata={"format": "pt", **source})
    # safetensors writes for its owner alone; let those read it who may read the configuration.
    weights_path.chmod((folder / "config.json").stat().st_mode)


def _problem_of(folder: Path) -> str | None:
    """Loads the folder as it will be loaded; what is missing, left over or of another shape."""
    loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    report = loaded[1]
    for name, found, expected in sorted(report["mismatched_keys"]):
        return f"what becomes {name!r} has shape {tuple(found)}, expected {tuple(expected)}"
    for name in sorted(report["missing_keys"]):
        return f"it has no tensor for {name!r}"
    for name in sorted(report["unexpected_keys"]):
        return f"{name!r} would be left over"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_digest(path: Path, digest: str) -> None:
    """The model zoo ends a file's name with the first digits of its sha256: `model_final_54b88a.pkl`."""
    named = re.search(r"_([0-9a-f]{6,})\.pkl$", path.name)
    if named and not digest.startswith(named[1]):
        raise ValueError(
            f"{path}: its sha256 begins with {digest[: len(named[1])]}, its name says {named[1]}; download "
            "it again, or pass --any-checksum to take it as it is"
        )
