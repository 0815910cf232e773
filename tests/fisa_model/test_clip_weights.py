"""The CLIP that is adapted: what is loaded, what is refused, and what makes it another one."""

import gzip
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from fisa_model.clip_weights import TOY_CLIP_PATH, digest_of, load_clip, read_architecture
from fisa_model.config import CLIPConfig

CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "mean": lambda config: config["preprocess_cfg"].update(mean=[0.5, 0.5, 0.5]),
    "std": lambda config: config["preprocess_cfg"].update(std=[0.5, 0.5, 0.5]),
    "heads": lambda config: config["model_cfg"]["text_cfg"].update(heads=1),
    "activation": lambda config: config["model_cfg"].update(quick_gelu=True),
}


def local_clip(folder: Path) -> str:
    return load_clip(CLIPConfig(model=f"local-dir:{folder}")).facts.digest


@pytest.mark.parametrize("change", list(CHANGES))
def test_another_setting_is_another_clip(tmp_path: Path, change: str) -> None:
    """With the same tensors; the toy CLIP brings its words."""
    folder = tmp_path / "clip"
    shutil.copytree(TOY_CLIP_PATH, folder)
    before = local_clip(folder)
    assert before == load_clip(CLIPConfig(model="toy")).facts.digest
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    CHANGES[change](config)
    path.write_text(json.dumps(config))
    assert local_clip(folder) != before


def test_other_words_and_other_tensors_are_another_clip(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(TOY_CLIP_PATH, folder)
    before = local_clip(folder)
    words = gzip.decompress((folder / "bpe.txt.gz").read_bytes()).split(b"\n")
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(b"\n".join([words[0], *reversed(words[1:])])))
    assert local_clip(folder) != before
    shutil.copy(TOY_CLIP_PATH / "bpe.txt.gz", folder)
    assert local_clip(folder) == before
    tensors = load_file(folder / "open_clip_model.safetensors")
    tensors["logit_scale"] += 1e-3
    save_file(tensors, folder / "open_clip_model.safetensors")
    assert local_clip(folder) != before


def other_weights(folder: Path) -> dict[str, Path]:
    """Files that are no weights of the model that is asked for."""
    contents = {
        "random.pt": np.random.default_rng(0).bytes(300),
        "empty.pt": b"",
        "text.pt": b"404 Not Found",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    torch.save([1, 2], folder / "list.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Path("x")))
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    names = [*contents, "list.pt", "pickle.pt", "other.safetensors"]
    return {name: folder / name for name in names}


def test_a_file_that_is_no_clip_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for path in other_weights(tmp_path).values():
        with pytest.raises(ValueError, match=rf"CLIP 'ViT-S-32' with weights '.*{path.name}' could not be"):
            load_clip(CLIPConfig(model="ViT-S-32", weights=str(path)))


def test_a_damaged_clip_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(TOY_CLIP_PATH, folder)
    path = folder / "open_clip_config.json"
    whole = path.read_text()
    for damage in ({"vision_cfg": None}, {"vision_cfg": {"wide": 1}}, {"vision_cfg": {"width": 7}}):
        config = json.loads(whole)
        config["model_cfg"].update(damage)
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"CLIP 'local-dir:.*/clip' with weights None could not be"):
            load_clip(CLIPConfig(model=f"local-dir:{folder}"))


def test_clip_is_loaded_frozen_with_its_numbers(clip_folder: Path, clip: Any) -> None:
    loaded = load_clip(CLIPConfig(model=f"local-dir:{clip_folder}"))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.facts.digest == digest_of(clip, loaded.tokenizer)
    assert loaded.facts.logit_scale == pytest.approx(1 / 0.07)
    assert loaded.facts.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert loaded.tokenizer(["cat"]).shape == (1, 24)


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


def test_a_foreign_pickle_is_refused_without_bad_advice(tmp_path: Path) -> None:
    (tmp_path / "foreign.pt").write_bytes(b"\x80\x02cbuiltins\nprint\n.")
    with pytest.raises(
        ValueError, match=r"foreign.pt' could not be loaded .*it is no file of tensors"
    ) as refused:
        load_clip(CLIPConfig(model="ViT-S-32", weights=str(tmp_path / "foreign.pt")))
    assert "weights_only" not in str(refused.value)


def test_building_without_weights_warns_of_none_in_any_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that run at the same time look at their models at the same time."""
    root = logging.getLogger()
    level, filters = root.level, list(root.filters)
    config = CLIPConfig(model="ViT-B-32")
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read_architecture(config), range(8)))
        assert caplog.records == []
        open_clip.create_model("ViT-B-32", load_weights=False, device="meta")
        assert ["No pretrained weights" in record.message for record in caplog.records] == [True]
    assert (root.level, root.filters) == (level, filters)
