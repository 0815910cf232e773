"""What is written and read: trained tensors only, tied to their CLIP."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fisa_model.config import CLIPConfig, FISAConfig, SEVEConfig
from fisa_model.fisa import FISA, build_fisa
from fisa_model.weights import digest_of, load_clip, load_fisa, read_fisa, save_fisa


def test_only_what_was_trained_is_written(model: FISA, config: FISAConfig, tmp_path: Path) -> None:
    save_fisa(tmp_path / "fisa.safetensors", model, config, {"seen": "cat, dog"})
    saved = read_fisa(tmp_path / "fisa.safetensors")
    assert set(saved.tensors) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert saved.config == config
    assert saved.metadata == {"seen": "cat, dog"}
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
        ValueError, match=r"new.safetensors: its settings are those of another version of FISA \(.*kernel"
    ):
        read_fisa(tmp_path / "new.safetensors")


def test_digest_knows_names_and_values(clip: Any) -> None:
    linear = torch.nn.Linear(3, 2)
    before = digest_of(linear)
    assert before == digest_of(linear)
    with torch.no_grad():
        linear.bias[0] += 1e-3
    assert digest_of(linear) != before
    assert digest_of(torch.nn.Sequential(linear)) != digest_of(linear)


def test_clip_is_loaded_frozen_with_its_numbers(clip_folder: Path, clip: Any) -> None:
    loaded = load_clip(CLIPConfig(model=f"local-dir:{clip_folder}"))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.facts.digest == digest_of(clip)
    assert loaded.facts.logit_scale == pytest.approx(1 / 0.07)
    assert loaded.facts.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert loaded.tokenizer(["cat"]).shape == (1, 12)


def test_a_folders_own_word_pieces_are_used(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own_words"
    shutil.copytree(clip_folder, folder)
    (folder / "bpe.txt.gz").write_bytes(b"not gzip")
    # The file is opened, so it is the one that would be read.
    with pytest.raises(ValueError, match=r"bpe.txt.gz"):
        load_clip(CLIPConfig(model=f"local-dir:{folder}"))


def test_clips_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown CLIP 'ViT-Z'"):
        load_clip(CLIPConfig(model="ViT-Z"))
    with pytest.raises(ValueError, match="use the model 'ViT-L-14-336-quickgelu'"):
        load_clip(CLIPConfig(model="ViT-L-14-336", weights="openai"))
    with pytest.raises(ValueError, match="could not be loaded"):
        load_clip(CLIPConfig(model="ViT-B-32", weights=str(tmp_path / "missing.safetensors")))
    with pytest.raises(ValueError, match=r"no open_clip_config.json there"):
        load_clip(CLIPConfig(model=f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no open_clip_model.safetensors there"):
        load_clip(CLIPConfig(model=f"local-dir:{tmp_path}"))
