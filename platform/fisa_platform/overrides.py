"""Values set by texts like `config.iterations=100`."""

import copy
from collections.abc import Sequence

from fisa_platform.decode import DecodeError, Mistake
from fisa_platform.yaml_source import read_yaml


def apply_overrides(raw: object, overrides: Sequence[str], origin: str = "--set") -> object:
    """A copy of plain data with values set by texts like `config.iterations=100`, which are YAML.

    Raises:
        DecodeError: a text is no such setting; `origin` says where the texts come from.
    """
    data = copy.deepcopy(raw)
    for override in overrides:
        place, equals, text = override.partition("=")
        keys = place.strip().split(".")
        if not equals or not all(keys):
            message = (
                f"expected a dotted name, '=' and a value, got {override!r}; write it like config.seed=1"
            )
            raise DecodeError([Mistake("", f"{origin}: {message}")])
        target = data
        for key in keys[:-1]:
            target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            message = f"cannot be set, as something above it is no mapping (the value given is {text!r})"
            raise DecodeError([Mistake(place, f"{message}; set the whole value above it")])
        target[keys[-1]] = _read_value(text, f"{origin} {override}")
    return data


def _read_value(text: str, origin: str) -> object:
    try:
        return read_yaml(text).data
    except DecodeError as error:
        # Its lines and places are those of the text alone.
        raise DecodeError(
            [Mistake("", f"{origin}: {mistake.message}") for mistake in error.mistakes]
        ) from error
