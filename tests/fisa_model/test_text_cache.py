"""Embeddings that outlive the process, and files that are not to be trusted."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fisa_model.config import CLIPConfig, FISAConfig
from fisa_model.fisa import build_fisa
from fisa_model.text_cache import TextCache, default_path
from fisa_model.text_encoder import TextEncoder
from fisa_model.vocabulary import Vocabulary

NAMES, TEMPLATES = ["cat", "dog"], ("a {}", "the {}")
ROWS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])


class Counted:
    """A tokenizer that counts the prompts it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[str] = []

    def __call__(self, prompts: list[str]) -> torch.Tensor:
        self.prompts += prompts
        return self.tokenizer(prompts)


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    return TextCache(tmp_path / "text", "digest of a CLIP")


def test_rows_come_back(cache: TextCache) -> None:
    assert cache.read(NAMES, TEMPLATES) is None
    cache.write(NAMES, TEMPLATES, ROWS)
    read = cache.read(NAMES, TEMPLATES)
    assert read is not None
    assert torch.equal(read, ROWS)
    assert [path.name for path in cache.folder_path.iterdir()] == [cache.path_of(NAMES, TEMPLATES).name]


def test_the_key_is_the_clip_the_names_and_the_templates(cache: TextCache) -> None:
    other = TextCache(cache.folder_path, "digest of another CLIP")
    paths = {
        cache.path_of(NAMES, TEMPLATES),
        cache.path_of(NAMES[::-1], TEMPLATES),
        cache.path_of(["cat, dog"], TEMPLATES),
        cache.path_of(NAMES, TEMPLATES[:1]),
        other.path_of(NAMES, TEMPLATES),
    }
    assert len(paths) == 5


def test_a_damaged_file_is_ignored_and_written_anew(cache: TextCache) -> None:
    cache.write(NAMES, TEMPLATES, ROWS)
    path = cache.path_of(NAMES, TEMPLATES)
    whole = path.read_bytes()
    damaged = [whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"not safetensors at all"]
    for content in damaged:
        path.write_bytes(content)
        assert cache.read(NAMES, TEMPLATES) is None
        cache.write(NAMES, TEMPLATES, ROWS)
        assert load_file(path)["rows"].equal(ROWS)


def test_a_foreign_file_is_ignored(cache: TextCache) -> None:
    cache.write(NAMES, TEMPLATES, ROWS)
    path = cache.path_of(NAMES, TEMPLATES)
    own = path.read_bytes()
    save_file(load_file(path), path)
    assert cache.read(NAMES, TEMPLATES) is None
    save_file({"weights": ROWS}, path)
    assert cache.read(NAMES, TEMPLATES) is None
    cache.path_of(["cow", "sea"], TEMPLATES).write_bytes(own)
    assert cache.read(["cow", "sea"], TEMPLATES) is None


def test_a_failed_write_is_a_warning_and_leaves_the_old_file_and_no_other(
    cache: TextCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write(NAMES, TEMPLATES, ROWS)
    before = cache.path_of(NAMES, TEMPLATES).read_bytes()
    blocked = cache.path_of(["cow"], TEMPLATES)
    blocked.mkdir()
    cache.write(["cow"], TEMPLATES, ROWS[:1])
    assert f"{blocked}: text embeddings are not kept" in caplog.text
    assert cache.read(["cow"], TEMPLATES) is None
    assert cache.path_of(NAMES, TEMPLATES).read_bytes() == before
    assert len(list(cache.folder_path.iterdir())) == 2


def test_without_a_folder_words_are_encoded_each_time(
    text_encoder: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = TextCache(tmp_path / "file" / "text", "digest")
    encoder = TextEncoder(text_encoder.clip, text_encoder.tokenizer, cache)
    assert len(encoder.encode(Vocabulary.from_names(["cat"]), TEMPLATES).classifier) == 1
    assert "they are encoded each time" in caplog.text


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_path() == tmp_path / "cache" / "fisa" / "text"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_path() == tmp_path / ".cache" / "fisa" / "text"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 54_321)
    assert default_path() is None


def test_a_second_encoder_finds_what_the_first_has_encoded(
    text_encoder: TextEncoder, cache: TextCache
) -> None:
    counted = Counted(text_encoder.tokenizer)
    vocabulary = Vocabulary.from_names(["cat, kitten", "dog"])
    first = TextEncoder(text_encoder.clip, counted, cache).encode(vocabulary, TEMPLATES, void="other")
    assert len(counted.prompts) == 8
    second = TextEncoder(text_encoder.clip, counted, cache).encode(vocabulary, TEMPLATES, void="other")
    assert len(counted.prompts) == 8
    assert torch.equal(first.classifier, second.classifier)
    assert torch.equal(first.targets, second.targets)


def test_a_file_does_not_depend_on_what_was_encoded_before(
    text_encoder: TextEncoder, cache: TextCache
) -> None:
    fresh = TextEncoder(text_encoder.clip, text_encoder.tokenizer, cache)
    fresh.encode(Vocabulary.from_names(["cat"]), TEMPLATES)
    fresh.encode(Vocabulary.from_names(["cat", "dog"]), TEMPLATES)
    rows = cache.read(["cat", "dog"], TEMPLATES)
    assert rows is not None
    assert rows.shape == (2, 24)


def test_a_model_is_built_with_a_cache_only_when_asked(config: FISAConfig, tmp_path: Path) -> None:
    assert build_fisa(config)[1].cache is None
    _, encoder = build_fisa(config, text_cache_path=tmp_path)
    encoder.encode(Vocabulary.from_names(["cat"]), ("{}",))
    assert encoder.cache is not None
    assert encoder.cache.path_of(["cat"], ("{}",)).is_file()


@pytest.mark.parametrize("setting", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_text_towers_of_the_same_tensors_have_files_of_their_own(
    config: FISAConfig, clip_folder: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    other = shutil.copytree(clip_folder, tmp_path / "clip")
    written = json.loads((other / "open_clip_config.json").read_text())
    written["model_cfg"]["text_cfg"] |= setting
    (other / "open_clip_config.json").write_text(json.dumps(written))
    names = Vocabulary.from_names(["cat"])
    rows = []
    for clip in (config.clip, CLIPConfig(model=f"local-dir:{other}")):
        _, encoder = build_fisa(dataclasses.replace(config, clip=clip), text_cache_path=tmp_path / "cache")
        rows.append(encoder.encode(names, ("a {}",)).classifier)
    assert not torch.allclose(*rows, atol=1e-3)
