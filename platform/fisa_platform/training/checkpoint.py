"""A checkpoint: everything that a run needs to go on as if it had not stopped, and nothing that is frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fisa_platform.training.loop import TrainingState

_TENSORS, _OPTIMIZER, _STATE = "trained.safetensors", "optimizer.pt", "state.json"


def save_checkpoint(folder: Path, state: TrainingState[Any]) -> None:
    """Write the trained tensors, the optimizer and the step into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in _trained(state.objective).items()}
    save_file(tensors, folder / _TENSORS)
    torch.save(
        {"optimizer": state.optimizer.state_dict(), "schedule": state.schedule.state_dict()},
        folder / _OPTIMIZER,
    )
    (folder / _STATE).write_text(json.dumps({"step": state.step}))


def load_checkpoint(folder: Path, state: TrainingState[Any]) -> None:
    """Put a checkpoint back into a state that was built from the same config.

    Raises:
        ValueError: the folder holds other tensors than the state trains.
    """
    saved = load_file(folder / _TENSORS)
    parameters = _trained(state.objective)
    if odd := sorted(saved.keys() ^ parameters.keys()):
        raise ValueError(
            f"{folder}: tensor {odd[0]!r} (of {len(odd)}) is in only one of the checkpoint and the model; "
            "was the model config changed? give the run another output_uri"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    states: dict[str, Any] = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
    state.optimizer.load_state_dict(states["optimizer"])
    state.schedule.load_state_dict(states["schedule"])
    state.step = json.loads((folder / _STATE).read_text())["step"]


def _trained(objective: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}
