"""The CLIP that is adapted: loaded through open_clip, built without weights, and told from any other."""

import hashlib
import json
import logging
import pickle
import re
import textwrap
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fisa_model.config import LOCAL_DIR, TOY_CLIP, CLIPConfig
from fisa_model.text_encoder import Tokenizer

logger = logging.getLogger(__name__)

TOY_CLIP_PATH = Path(__file__).parent / "assets" / "toy_clip"
BPE_NAME = "bpe.txt.gz"
HUB = "hf-hub:"
PROBES = ["a photo of a cat", "The quick brown fox jumps over 13 lazy dogs!", "motorbike, traffic light"]
"""Texts whose tokens tell one tokenizer from another."""

_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)
"""What open_clip and torch raise for files that are no weights of an architecture, or for a damaged one."""

_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
_BYTES_PER_CHUNK = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CLIPFacts:
    """What a model must remember of its CLIP."""

    digest: str
    """See `digest_of`."""

    logit_scale: float
    """Factor on cosines, at most 100."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


UNKNOWN_CLIP = CLIPFacts("", 100.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Of a CLIP without weights, on which parameters are counted."""


@dataclass(frozen=True, slots=True)
class LoadedCLIP:
    model: Any
    """An open_clip model, frozen."""

    tokenizer: Tokenizer
    facts: CLIPFacts


def load_clip(config: CLIPConfig) -> LoadedCLIP:
    """Loads a CLIP through open_clip, frozen and in evaluation mode."""
    name = _open_clip_name(config)
    _check_source(name, config.weights)
    if config.weights is None and not config.is_local:
        logger.warning("CLIP %s has no weights given and starts from random ones", config.model)
    try:
        model = _create(name, config.weights)
    except _UNREADABLE as error:
        # torch's own message advises to run whatever code the pickle holds.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = (
            "it is no file of tensors" if unsafe else textwrap.shorten(str(error), 300, placeholder=" ...")
        )
        advice = "give weights of this architecture, as open_clip or OpenAI publish them"
        # open_clip wraps what went wrong with a download.
        if isinstance(error, OSError) or "download" in str(error):
            advice = "check the network or the path; a file of weights that is on this machine will do, too"
        raise ValueError(
            f"CLIP {config.model!r} with weights {config.weights!r} could not be loaded "
            f"({type(error).__name__}: {reason}); {advice}"
        ) from (None if unsafe else error)
    model = model.eval().requires_grad_(requires_grad=False)
    visual: Any = model.visual
    tokenizer = _load_tokenizer(name)
    facts = CLIPFacts(
        digest=digest_of(model, tokenizer),
        logit_scale=min(float(model.logit_scale.exp()), 100.0),
        mean=tuple(visual.image_mean),
        std=tuple(visual.image_std),
    )
    return LoadedCLIP(model, tokenizer, facts)


def _create(name: str, weights: str | None) -> Any:
    own = None if weights is None else _read_openai(Path(weights))
    if own is None:
        return open_clip.create_model(name, weights)
    if not (open_clip.get_model_config(name) or {}).get("quick_gelu", False):
        raise ValueError(
            f"weights {weights!r} are OpenAI's and want QuickGELU, which {name!r} lacks; "
            f"use the model '{name}-quickgelu'"
        )
    model = open_clip.create_model(name, load_weights=False)
    model.load_state_dict(own)
    return model


def _read_openai(path: Path) -> dict[str, Tensor] | None:
    """Weights of a file as OpenAI publishes them, a TorchScript archive; None for a file of another form.

    open_clip only reads such a file where it may run any code in it (`weights_only=False`).
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return None
    tensors: dict[str, Tensor] = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return {name: tensor for name, tensor in tensors.items() if name not in _OPENAI_SIZES}


def read_architecture(config: CLIPConfig) -> Any:
    """An open_clip model on the meta device: its shapes, without weights."""
    name = _open_clip_name(config)
    _check_source(name, config.weights)
    thread, root = threading.get_ident(), logging.getLogger()

    def is_wanted(record: logging.LogRecord) -> bool:
        """open_clip warns of missing weights, which nobody wants here; other threads may load some."""
        return record.thread != thread or record.levelno >= logging.ERROR

    root.addFilter(is_wanted)
    try:
        model = open_clip.create_model(name, load_weights=False, device="meta")
    except _UNREADABLE as error:
        raise ValueError(
            f"CLIP {config.model!r} could not be built ({type(error).__name__}: {error}); choose another, or "
            "check its open_clip_config.json"
        ) from error
    finally:
        root.removeFilter(is_wanted)
    return model.requires_grad_(requires_grad=False)


def is_described_here(config: CLIPConfig) -> bool:
    """Whether `read_architecture` asks no hub; some CLIPs take the shapes of their text tower from one."""
    if config.model.startswith(HUB):
        return False
    described = open_clip.get_model_config(config.model) or {}
    return "hf_model_name" not in described.get("text_cfg", {})


def _open_clip_name(config: CLIPConfig) -> str:
    return f"{LOCAL_DIR}{TOY_CLIP_PATH}" if config.model == TOY_CLIP else config.model


def _check_source(name: str, weights: str | None) -> None:
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(
                f"{folder}: no open_clip_config.json there; give the folder of an open_clip model"
            )
        # open_clip would also read pickles, and start from random weights where there are none.
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder}: no open_clip_model.safetensors there; give a folder with weights")
        return
    if name.startswith(HUB):
        return
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(
            f"unknown CLIP {name!r}; choose one of open_clip.list_models(), such as 'ViT-L-14-336-quickgelu'"
        )
    # The published weights of OpenAI want QuickGELU; under plain GELU they load and are silently worse.
    tag = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    if weights and not tag and not Path(weights).exists() and re.fullmatch(r"[\w-]+", weights):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none that open_clip knows"
        raise ValueError(f"unknown weights {weights!r} of {name!r}; choose one of {tags}, or give a file")
    if tag and bool(tag.get("quick_gelu", False)) != bool(config.get("quick_gelu", False)):
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        raise ValueError(
            f"weights {weights!r} do not fit the activation of {name!r}; use the model {other!r}"
        )


def _load_tokenizer(name: str) -> Tokenizer:
    bpe_path = Path(name.removeprefix(LOCAL_DIR)) / BPE_NAME
    if not (name.startswith(LOCAL_DIR) and bpe_path.is_file()):
        tokenizer: Tokenizer = open_clip.get_tokenizer(name)
        return tokenizer
    try:
        tokenizer = open_clip.get_tokenizer(name, bpe_path=str(bpe_path))
    except (OSError, EOFError) as error:
        raise ValueError(f"{bpe_path}: not a gzip file of word pieces ({error}); copy it again") from error
    return tokenizer


def digest_of(model: nn.Module, tokenizer: Tokenizer) -> str:
    """SHA-256 over what a CLIP computes with: its weights by sorted name, its settings, its tokens."""
    digest = hash_tensors(model.state_dict())
    # The same tensors make another CLIP with other heads, another activation, other colours or other tokens.
    visual: Any = model.visual
    kinds = [type(module).__name__ for module in model.modules()]
    settings = {
        "mean": list(visual.image_mean),
        "std": list(visual.image_std),
        "heads": [module.num_heads for module in model.modules() if hasattr(module, "num_heads")],
        "activations": [kind for kind in kinds if kind.endswith("GELU")],
        "tokens": tokenizer(PROBES).tolist(),
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> "hashlib._Hash":
    """SHA-256 over tensors by sorted name, to which more may be added."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        for part in torch.split(flat, _BYTES_PER_CHUNK):
            digest.update(part.numpy().data)
    return digest
