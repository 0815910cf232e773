"""Conversion of Mask2Former's published checkpoints: every tensor once, and no foreign code."""

import hashlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators import load_mask_generator
from fisa_model.mask_generators.detectron2_pickle import read_checkpoint
from fisa_model.mask_generators.mask2former_architectures import PUBLISHED, describe, read_architecture
from fisa_model.mask_generators.mask2former_checkpoint import convert_checkpoint, convert_tensors
from fisa_model.mask_generators.mask2former_names import hub_names

LAYOUTS = Path(__file__).parent / "layouts"
Arrays = dict[str, NDArray[Any]]

both_backbones = pytest.mark.parametrize("backbone", ["resnet", "swin"])


def window_index(side: int) -> NDArray[np.int64]:
    places = [(row, column) for row in range(side) for column in range(side)]
    rank = 2 * side - 1
    return np.array([[(a - c + side - 1) * rank + b - d + side - 1 for c, d in places] for a, b in places])


def synthetic(backbone: str) -> Arrays:
    """Random numbers in the names and shapes of a small network that detectron2 built."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for line in (LAYOUTS / f"mask2former_{backbone}.txt").read_text().splitlines():
        name, *shape = line.split()
        arrays[name] = 0.1 * random.standard_normal(tuple(map(int, shape)), dtype=np.float32)
        if name.endswith("running_var"):
            arrays[name] = 1 + abs(arrays[name])
        if name.endswith("relative_position_index"):
            arrays[name] = window_index(4)
    return arrays


def write_pickle(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


@both_backbones
def test_every_tensor_is_used_once_and_every_one_of_the_network_is_set(backbone: str, tmp_path: Path) -> None:
    arrays = synthetic(backbone)
    source = write_pickle(tmp_path / "model.pkl", {"model": arrays, "__author__": "x"})
    words = convert_checkpoint(source, tmp_path / "converted")
    assert words.endswith("7 queries, 5 classes")
    loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "converted", output_loading_info=True
    )
    network, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    used = {name: hub_names(name) for name in arrays if "relative_position_index" not in name}
    targets = [target for names in used.values() for target in names]
    assert len(targets) == len(set(targets))
    with safe_open(tmp_path / "converted" / "model.safetensors", "pt") as file:
        unused = set(file.keys()) - set(targets)
        assert file.metadata()["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        for name, names in used.items():
            got = np.concatenate([file.get_tensor(part) for part in names])
            assert np.array_equal(got, arrays[name]), name
    assert all("num_batches_tracked" in name or "swin.layernorm" in name for name in unused)
    assert len(network.state_dict()) == len(targets) + len(unused)


@both_backbones
def test_a_converted_folder_proposes(backbone: str, tmp_path: Path) -> None:
    convert_checkpoint(write_pickle(tmp_path / "a.pkl", synthetic(backbone)), tmp_path / "converted")
    generator: Any = load_mask_generator("mask2former", weights=str(tmp_path / "converted"))
    generator.shortest, generator.longest = 64, 96
    proposals = generator(np.zeros((50, 60, 3), np.uint8))
    assert proposals.mask_logits.shape == (7, 16, 20)
    assert np.isfinite(proposals.mask_logits).all()


def test_packed_projections_are_cut_in_thirds() -> None:
    name = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias"
    tensors = convert_tensors({name: np.array([1, 2, 3, 4, 5, 6], np.float32)})
    below = "model.transformer_module.decoder.layers.0.self_attn"
    assert {key: value.tolist() for key, value in tensors.items()} == {
        f"{below}.q_proj.bias": [1, 2],
        f"{below}.k_proj.bias": [3, 4],
        f"{below}.v_proj.bias": [5, 6],
    }


def test_the_old_name_of_the_queries_is_understood_but_not_beside_the_new_one() -> None:
    old, new = (f"sem_seg_head.predictor.{name}.weight" for name in ("static_query", "query_feat"))
    arrays = synthetic("swin")
    renamed = {name.replace("query_feat", "static_query"): array for name, array in arrays.items()}
    assert old in renamed
    expected = convert_tensors(arrays)
    assert all(torch.equal(value, expected[name]) for name, value in convert_tensors(renamed).items())
    with pytest.raises(ValueError, match=f"'{old}' is there under another name as well"):
        convert_tensors({new: arrays[new], old: arrays[new]})


def test_a_counted_batch_is_kept() -> None:
    name = "backbone.stem.conv1.norm"
    arrays = {f"{name}.num_batches_tracked": np.array(7), f"{name}.running_var": np.ones(2, np.float32)}
    counter = "model.pixel_level_module.encoder.embedder.embedder.normalization.num_batches_tracked"
    assert convert_tensors(arrays)[counter].item() == 7


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"backbone.cls_token": np.zeros(3)}, "tensor 'backbone.cls_token' is none of Mask2Former's"),
        (
            {"sem_seg_head.predictor.query_embed.weight": None},
            "no tensor 'sem_seg_head.predictor.query_embed",
        ),
        (
            {"sem_seg_head.predictor.decoder_norm.bias": None},
            "it has no tensor for '.*decoder.layernorm.bias'",
        ),
        ({"sem_seg_head.predictor.decoder_norm.bias": np.zeros(9)}, r"has shape \(9,\), expected \(32,\)"),
        ({"backbone.layers.0.blocks.0.attn.qkv.bias": np.zeros(8)}, "must have rows for 3 equal parts"),
        (
            {"backbone.layers.2.blocks.1.attn.relative_position_index": window_index(4).T},
            "'backbone.layers.2.blocks.1.attn.relative_position_index' is not the order",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_first_wrong_tensor(
    broken: dict[str, NDArray[Any] | None], sentence: str, tmp_path: Path
) -> None:
    merged = synthetic("swin") | broken
    arrays = {name: array for name, array in merged.items() if array is not None}
    source = write_pickle(tmp_path / "model.pkl", {"model": arrays})
    with pytest.raises(ValueError, match=sentence) as caught:
        convert_checkpoint(source, tmp_path / "converted")
    assert str(caught.value).startswith(f"{source}: ")
    assert list(tmp_path.iterdir()) == [source]


class Malicious:
    """Asks whoever unpickles it to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "model.pkl", {"model": {"a": Malicious(tmp_path / "made")}})
    with pytest.raises(ValueError, match=r"asks for posix\.mkdir, which is refused"):
        read_checkpoint(source)
    assert not (tmp_path / "made").exists()
    (tmp_path / "system.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match=r"asks for os\.system, which is refused"):
        read_checkpoint(tmp_path / "system.pkl")
    # A dotted name would walk from what is allowed to what is not.
    (tmp_path / "dotted.pkl").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(ValueError, match=r"asks for numpy\.dtype\.__init__, which is refused"):
        read_checkpoint(tmp_path / "dotted.pkl")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_any_numpy_and_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    tensors = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array(3))
    tensors._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    data = pickle.dumps({"model": tensors, "iteration": np.int64(5)}, protocol=protocol)
    path = tmp_path / "model.pkl"
    path.write_bytes(data)
    assert np.array_equal(read_checkpoint(path)["a"], tensors["a"])
    # Protocol 3 writes names as lines, so that numpy 1's need no new lengths.
    if protocol == 3:
        path.write_bytes(data.replace(b"numpy._core.", b"numpy.core."))
        assert read_checkpoint(path)["b"] == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04 a zip", "cannot be read as a pickle of arrays"),
        (b"", "cannot be read as a pickle of arrays"),
        (pickle.dumps([1, 2]), "must hold a dictionary of arrays, got list"),
        (pickle.dumps({"model": {}}), "must hold a dictionary of arrays"),
        (pickle.dumps({"model": {"a": "b"}}), "must hold arrays of numbers by name, got 'a': str"),
        (pickle.dumps({"a": np.array([None])}), "got 'a': array of object"),
    ],
)
def test_other_files_are_refused_in_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    source = tmp_path / "model.pkl"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(source, tmp_path / "converted")


def test_the_digits_of_a_files_name_are_those_of_its_content(tmp_path: Path) -> None:
    wrong = write_pickle(tmp_path / "model_final_54b88a.pkl", {"model": {"a": np.zeros(1)}})
    digest = hashlib.sha256(wrong.read_bytes()).hexdigest()
    with pytest.raises(
        ValueError, match=f"begins with {digest[:6]}, its name says 54b88a; download it again"
    ):
        convert_checkpoint(wrong, tmp_path / "converted")
    with pytest.raises(ValueError, match="no Mask2Former"):
        convert_checkpoint(wrong, tmp_path / "converted", any_checksum=True)
    with pytest.raises(ValueError, match="no Mask2Former"):
        convert_checkpoint(wrong.rename(tmp_path / f"model_final_{digest[:6]}.pkl"), tmp_path / "converted")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "model.pkl", synthetic("swin"))
    (tmp_path / "converted").mkdir()
    with pytest.raises(ValueError, match="converted: exists already; choose another folder or remove it"):
        convert_checkpoint(source, tmp_path / "converted")
    with pytest.raises(ValueError, match=r"absent\.pkl: no such file"):
        convert_checkpoint(tmp_path / "absent.pkl", tmp_path / "other")


def test_published_architectures_are_told_by_their_backbone() -> None:
    assert describe(PUBLISHED["Swin-L"]) == "Swin-L, 200 queries, 133 classes"
    assert len({known.backbone for known in PUBLISHED.values()}) == len(PUBLISHED)
    swin = read_architecture({name: array.shape for name, array in synthetic("swin").items()})
    assert (swin.width, swin.mask_width, swin.heads, swin.pixel_layers, swin.query_layers) == (
        32,
        24,
        4,
        2,
        4,
    )
    assert "depths=(2, 1, 2, 1), heads=(1, 2, 4, 8), window=4" in describe(swin)
