from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from fisa_platform.decode import DecodeError, decode


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float
    warmup_steps: int = 10

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")


@dataclass(frozen=True, kw_only=True)
class Config:
    images_uri: str
    batch_size: int = 8
    kind: Literal["full", "simo"] = "simo"
    classes: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 1)
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | None = None
    optimizer: Optimizer | None = None
    cache_path: Path | None = None
    shuffle: bool = False


def mistakes(raw: object) -> list[str]:
    with pytest.raises(DecodeError) as caught:
        decode(Config, raw, "config")
    return [f"{m.path}: {m.message}" for m in caught.value.mistakes]


def test_every_kind_of_field_decodes() -> None:
    raw = {
        "images_uri": "s3://b/images",
        "kind": "full",
        "classes": ["cat", "sofa"],
        "size": [3, 4],
        "weights": {"cat": 2},
        "limit": None,
        "optimizer": {"learning_rate": 1},
        "cache_path": "/tmp/cache",
        "shuffle": True,
    }
    config = decode(Config, raw)
    assert config == Config(
        images_uri="s3://b/images",
        kind="full",
        classes=("cat", "sofa"),
        size=(3, 4),
        weights={"cat": 2.0},
        optimizer=Optimizer(learning_rate=1.0),
        cache_path=Path("/tmp/cache"),
        shuffle=True,
    )
    assert isinstance(config.weights["cat"], float)


def test_every_mistake_is_listed_with_its_path() -> None:
    found = mistakes(
        {"batchsize": 3, "kind": "simmo", "optimizer": {"warmup_steps": "9"}, "classes": ["a", 1]}
    )
    assert [line.split(":")[0] for line in found] == [
        "config.batchsize",
        "config.images_uri",
        "config.kind",
        "config.classes[1]",
        "config.optimizer.learning_rate",
        "config.optimizer.warmup_steps",
    ]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"batchsize": 3}, "config.batchsize: unknown field (with the value 3), accepted are images_uri, "),
        ({"batchsize": 3}, "did you mean 'batch_size'?"),
        ({"zzz": 3}, "remove it or use one of these"),
        (
            {"batch_size": "64"},
            "config.batch_size: expected a whole number, got '64'; write it without quotes",
        ),
        ({"batch_size": True}, "config.batch_size: expected a whole number, got true"),
        ({"batch_size": 1.5}, "expected a whole number, got 1.5; write it without a decimal point"),
        ({"batch_size": None}, "expected a whole number, got nothing; write a value after the colon"),
        ({"shuffle": 1}, "config.shuffle: expected true or false, got 1"),
        ({"kind": "simmo"}, "expected one of 'full', 'simo', got 'simmo'; did you mean 'simo'?"),
        ({"classes": "cat"}, "expected a list (each entry text), got 'cat'; write it as [a, b]"),
        ({"size": [1, 2, 3]}, "config.size: expected 2 entries, got 3"),
        (
            {"weights": {"cat": float("nan")}},
            "config.weights.cat: expected a number, got nan; write a finite number",
        ),
        ({"limit": "all"}, "config.limit: expected a whole number, got 'all'"),
        ({"optimizer": 3}, "config.optimizer: expected a mapping with learning_rate, warmup_steps, got 3"),
        (
            {"optimizer": {"learning_rate": 1, "warmup_steps": -1}},
            "config.optimizer: warmup_steps must be 0 or more, got -1",
        ),
        ({"images_uri": 7}, "config.images_uri: expected text, got 7; write it in quotes"),
        ({"cache_path": 7}, "config.cache_path: expected text (a local path), got 7"),
    ],
)
def test_a_mistake_says_place_value_choice_and_next_step(raw: dict[str, object], sentence: str) -> None:
    assert sentence in "\n".join(mistakes({"images_uri": "x", **raw}))


def test_what_is_missing_says_what_to_write() -> None:
    assert mistakes({}) == ["config.images_uri: required, but missing; add 'images_uri', text"]


def test_a_type_may_bring_its_own_decoder() -> None:
    def comma_list(raw: object, path: str) -> object:
        return Optimizer(learning_rate=float(str(raw)))

    raw = {"images_uri": "x", "optimizer": "0.5"}
    assert decode(Config, raw, custom={Optimizer: comma_list}).optimizer == Optimizer(learning_rate=0.5)
