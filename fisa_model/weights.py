"""A weights file: the few tensors that FISA trained, and what is needed to use them."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fisa_model.clip_weights import hash_tensors
from fisa_model.config import AdapterConfig, CLIPConfig, FISAConfig, SEVEConfig
from fisa_model.fisa import FISA, build_fisa
from fisa_model.simo import learning_parameters
from fisa_model.text_encoder import TextEncoder
from fisa_model.training_facts import TrainingFacts

FORMAT = "fisa-1"


@dataclass(frozen=True, slots=True)
class SavedFISA:
    """A weights file in memory."""

    path: Path
    config: FISAConfig
    clip_digest: str
    tensors: dict[str, Tensor]
    facts: TrainingFacts

    def load_into(self, model: FISA) -> None:
        """Puts the trained tensors into a model that was built from `config`."""
        if model.clip.digest != self.clip_digest:
            raise ValueError(
                f"{self.path}: trained on a CLIP with digest {self.clip_digest[:12]}, but "
                f"{self.config.clip.model!r} as loaded has {model.clip.digest[:12]}; "
                "load the CLIP that these weights were trained on"
            )
        parameters = _trained(model, self.config)
        if odd := sorted(parameters.keys() ^ self.tensors.keys()):
            raise ValueError(
                f"{self.path}: tensor {odd[0]!r} (of {len(odd)}) is in only one of the file and the model; "
                "was the file written by another preset?"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != self.tensors[name].shape:
                    raise ValueError(
                        f"{self.path}: {name!r} has shape {list(self.tensors[name].shape)}, the model's has "
                        f"{list(parameter.shape)}; was the file written by another preset?"
                    )
                parameter.copy_(self.tensors[name])


def save_fisa(path: Path | str, model: FISA, config: FISAConfig, facts: TrainingFacts | None = None) -> None:
    """Writes the tensors that `config.trained` names, with the config, the CLIP's digest and the facts.

    Whether they require gradients at the moment does not matter.

    Raises:
        ValueError: the config is not the one that the model was built from.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile puts a model into another one
    _check_config(model, config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _trained(model, config).items()}
    header = {
        **(facts or TrainingFacts()).to_metadata(),
        "format": FORMAT,
        "fisa_config": json.dumps(asdict(config), sort_keys=True),
        "clip_digest": model.clip.digest,
        "tensors_digest": hash_tensors(tensors).hexdigest(),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=header)


def _check_config(model: FISA, config: FISAConfig) -> None:
    """Refuses a config that would load as another model."""
    seve = replace(config.seve, enabled=False) if model.seve is None else model.seve.config
    stated: dict[str, tuple[object, object]] = {
        "image_size": (config.image_size, model.image_size),
        "resize": (config.resize, model.resize),
        "cls_key": (config.cls_key, model.cls_key),
        "query_projection": (config.query_projection, model.visual_encoder.query_projection),
        "seve": (config.seve, seve),
        "adapter.layers": (config.adapter.layers, len(model.adapter.convolutions)),
        "adapter.bias": (config.adapter.bias, model.bias),
        "adapter.where": (config.adapter.where, model.adapter.where),
        "trains_text": (config.trains_text, model.text_tower is not None),
        "trained": (config.trained, model.trained),
    }
    for name, (said, found) in stated.items():
        if said != found:
            raise ValueError(
                f"config.{name} is {said!r}, the model's is {found!r}; give the config that it was built from"
            )


def read_fisa(path: Path | str) -> SavedFISA:
    """Reads a file that `save_fisa` wrote, without building the model."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.rglob("weights.safetensors"))
        file = str(found[-1]) if found else "weights.safetensors that a training run wrote"
        raise ValueError(f"{path}: is a folder; give the file {file}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the weights that a training run wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from error
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not written by FISA; give the weights that a training run wrote")
    try:
        config = _config_from_json(json.loads(metadata.pop("fisa_config")))
        clip_digest, tensors_digest = metadata.pop("clip_digest"), metadata.pop("tensors_digest")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: its settings are damaged or of another version of FISA "
            f"({type(error).__name__}: {error}); copy it again, or train with this version"
        ) from error
    if hash_tensors(tensors).hexdigest() != tensors_digest:
        raise ValueError(f"{path}: its tensors are damaged (their digest differs); copy or download it again")
    return SavedFISA(path, config, clip_digest, tensors, TrainingFacts.read(metadata, path))


def load_fisa(path: Path | str) -> tuple[FISA, TextEncoder]:
    """Builds the model of a file, on the CLIP that its config names, with the trained tensors in it."""
    saved = read_fisa(path)
    model, text_encoder = build_fisa(saved.config)
    saved.load_into(model)
    return model, text_encoder


def _config_from_json(fields: dict[str, Any]) -> FISAConfig:
    return FISAConfig(
        **fields
        | {
            "clip": CLIPConfig(**fields["clip"]),
            "seve": SEVEConfig(**fields["seve"]),
            "adapter": AdapterConfig(**fields["adapter"]),
        }
    )


def _trained(model: FISA, config: FISAConfig) -> dict[str, nn.Parameter]:
    learning = {id(parameter) for parameter in learning_parameters(model, config.trained)}
    return {name: p for name, p in model.named_parameters() if id(p) in learning}
