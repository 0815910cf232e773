"""What is written and read: trained tensors only, tied to their CLIP."""

import dataclasses
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fisa_model.config import AdapterConfig, CLIPConfig, FISAConfig, SEVEConfig, fisa_toy
from fisa_model.fisa import FISA, build_fisa
from fisa_model.training_facts import TrainingFacts
from fisa_model.vocabulary import Vocabulary
from fisa_model.weights import load_fisa, read_fisa, save_fisa


def test_only_what_was_trained_is_written(model: FISA, config: FISAConfig, tmp_path: Path) -> None:
    facts = TrainingFacts(templates="photo", vocabulary=Vocabulary.from_names(["cat", "dog"]))
    save_fisa(tmp_path / "fisa.safetensors", model, config, facts)
    saved = read_fisa(tmp_path / "fisa.safetensors")
    assert set(saved.tensors) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert saved.config == config
    assert saved.facts == facts
    assert saved.clip_digest == model.clip.digest


@pytest.mark.parametrize("trained", ["simo", "seve_only", "full"])
def test_a_model_comes_back_as_it_was(config: FISAConfig, tmp_path: Path, trained: Any) -> None:
    config = dataclasses.replace(config, trained=trained)
    model, _ = build_fisa(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    save_fisa(tmp_path / "fisa.safetensors", model, config)
    loaded, _ = load_fisa(tmp_path / "fisa.safetensors")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_another_clip_is_refused(
    model: FISA, config: FISAConfig, clip_model_cfg: dict[str, Any], tmp_path: Path
) -> None:
    save_fisa(tmp_path / "fisa.safetensors", model, config)
    other = tmp_path / "other"
    other.mkdir()
    (other / "open_clip_config.json").write_text(json.dumps({"model_cfg": clip_model_cfg}))
    save_file(CLIP(**clip_model_cfg).state_dict(), other / "open_clip_model.safetensors")
    changed, _ = build_fisa(dataclasses.replace(config, clip=CLIPConfig(model=f"local-dir:{other}")))
    with pytest.raises(ValueError, match=r"fisa.safetensors: trained on a CLIP with digest .* as loaded has"):
        read_fisa(tmp_path / "fisa.safetensors").load_into(changed)


def test_weights_of_another_preset_are_refused(model: FISA, config: FISAConfig, tmp_path: Path) -> None:
    save_fisa(tmp_path / "fisa.safetensors", model, config)
    saved = read_fisa(tmp_path / "fisa.safetensors")
    without, _ = build_fisa(dataclasses.replace(config, seve=SEVEConfig(enabled=False)))
    with pytest.raises(ValueError, match="written by another preset"):
        saved.load_into(without)
    wider, _ = build_fisa(dataclasses.replace(config, seve=SEVEConfig(query_width=16, heads=2)))
    with pytest.raises(ValueError, match=r"'seve\.extractions\.0\.key\.bias' has shape \[8\]|has shape"):
        saved.load_into(wider)


def test_damaged_and_foreign_files_are_named(model: FISA, config: FISAConfig, tmp_path: Path) -> None:
    whole = tmp_path / "fisa.safetensors"
    save_fisa(whole, model, config)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"cut.safetensors: not a whole safetensors file .* copy or download"
    ):
        read_fisa(tmp_path / "cut.safetensors")
    flipped = bytearray(whole.read_bytes())
    flipped[-1] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    with pytest.raises(ValueError, match=r"flipped.safetensors: its tensors are damaged"):
        read_fisa(tmp_path / "flipped.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign.safetensors: not written by FISA"):
        read_fisa(tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"none.safetensors: no such file"):
        read_fisa(tmp_path / "none.safetensors")


def test_settings_of_another_version_are_named(model: FISA, config: FISAConfig, tmp_path: Path) -> None:
    save_fisa(tmp_path / "fisa.safetensors", model, config)
    with safe_open(tmp_path / "fisa.safetensors", framework="pt") as file:
        metadata = dict(file.metadata())
    fields = json.loads(metadata["fisa_config"])
    fields["adapter"]["kernel"] = 5
    metadata["fisa_config"] = json.dumps(fields)
    save_file(load_file(tmp_path / "fisa.safetensors"), tmp_path / "new.safetensors", metadata)
    with pytest.raises(
        ValueError,
        match=r"new.safetensors: its settings are damaged or of another version .*kernel",
    ):
        read_fisa(tmp_path / "new.safetensors")


def damaged_metadata() -> list[dict[str, str]]:
    config = json.dumps(asdict(fisa_toy()))
    fields = json.loads(config)
    return [
        {"clip_digest": "0"},
        {"fisa_config": config},
        {"fisa_config": "{", "clip_digest": "0"},
        {"fisa_config": "[]", "clip_digest": "0"},
        {"fisa_config": json.dumps({**fields, "trained": "bogus"}), "clip_digest": "0"},
        {"fisa_config": json.dumps({k: v for k, v in fields.items() if k != "seve"}), "clip_digest": "0"},
        {"fisa_config": json.dumps({**fields, "adapter": {"layers": 9}}), "clip_digest": "0"},
    ]


@pytest.mark.parametrize("metadata", damaged_metadata())
def test_a_damaged_header_is_refused_in_one_sentence(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"format": "fisa-1", "tensors_digest": "0", **metadata})
    with pytest.raises(ValueError, match=r"weights.safetensors: its settings are damaged or of another"):
        read_fisa(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_size": 448},
            "image_size is 448, the model's is 224; give the config that it was built from",
        ),
        ({"resize": "letterbox"}, "resize is 'letterbox', the model's is 'squash'"),
        ({"cls_key": False}, "cls_key is False, the model's is True"),
        ({"query_projection": "shared"}, "query_projection is 'shared', the model's is 'mask_only'"),
        ({"seve": SEVEConfig(enabled=False)}, r"seve is SEVEConfig\(enabled=False, .* is SEVEConfig\("),
        ({"seve": SEVEConfig(residual="replace")}, r"seve is SEVEConfig\(enabled=True, residual='replace'"),
        ({"trained": "seve_only"}, "trained is 'seve_only', the model's is 'simo'"),
        ({"trained": "full"}, "trained is 'full', the model's is 'simo'"),
        ({"adapter": AdapterConfig(layers=1)}, r"adapter\.layers is 1, the model's is 2"),
        ({"adapter": AdapterConfig(bias="soft")}, r"adapter\.bias is 'soft', the model's is 'hard'"),
        ({"adapter": AdapterConfig(where="output")}, r"adapter\.where is 'output', the model's is 'both'"),
        ({"trains_text": True}, "trains_text is True, the model's is False"),
        ({"trained": "lora", "query_projection": "shared"}, "query_projection is 'shared'"),
    ],
)
def test_weights_are_saved_with_the_config_of_their_model(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model, _ = build_fisa(fisa_toy())
    with pytest.raises(ValueError, match=message):
        save_fisa(tmp_path / "x.safetensors", model, replace(fisa_toy(), **change))
    save_fisa(tmp_path / "new" / "folder" / "x.safetensors", model, fisa_toy())
    assert read_fisa(tmp_path / "new" / "folder" / "x.safetensors").config == fisa_toy()


def test_a_model_is_saved_whole_whatever_requires_gradients_now(
    model: FISA, config: FISAConfig, tmp_path: Path
) -> None:
    """Frozen for evaluation, or wrapped by torch.compile."""
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    model.requires_grad_(requires_grad=False)
    save_fisa(tmp_path / "frozen.safetensors", model, config)
    compiled: Any = torch.compile(model)
    save_fisa(tmp_path / "compiled.safetensors", compiled, config)
    for name in ("frozen", "compiled"):
        saved = read_fisa(tmp_path / f"{name}.safetensors")
        assert set(saved.tensors) == names
        saved.load_into(model)
