"""Decodes plain YAML data into frozen dataclasses, and lists every mistake with its dotted path."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with a spec."""

    path: str
    """Dotted path of the mistaken value."""

    message: str
    """The value got, what is accepted there, and the next step."""


class DecodeError(ValueError):
    """Every mistake of one piece of data."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(f"{m.path}: {m.message}" if m.path else m.message for m in mistakes))
        self.mistakes = mistakes


CustomDecoder = Callable[[object, str], object]
"""Decodes one value found at a dotted path; raises DecodeError."""


def decode(
    kind: type[T], raw: object, path: str = "", custom: Mapping[type, CustomDecoder] | None = None
) -> T:
    """Decode `raw` as `kind`; `custom` holds the decoders of types that choose their own form.

    Raises:
        DecodeError: with every mistake, not only the first.
    """
    mistakes: list[Mistake] = []
    value = _Decoder(mistakes, custom or {}).decode(kind, raw, path)
    if mistakes:
        raise DecodeError(mistakes)
    return cast(T, value)


def fields_of(kind: type) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Name, resolved type and field of everything a spec may say about a dataclass."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init:
            yield field.name, hints[field.name], field


def is_required(field: dataclasses.Field[Any]) -> bool:
    """True when a spec must name this field."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_union(kind: object) -> bool:
    """True for `A | B`, however it was written."""
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def join_path(path: str, key: object) -> str:
    """The dotted path of `key` below `path`."""
    return f"{path}.{key}" if path else str(key)


def suggestion(word: str, accepted: Collection[str]) -> str:
    """Where `word` looks like one of `accepted`, the hint that says so; else an empty string."""
    close = difflib.get_close_matches(word, accepted, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_field(raw: object, key: str, accepted: Collection[str]) -> str:
    """The message for a key that a mapping does not have."""
    hint = suggestion(key, accepted) or "; remove it or use one of these"
    return f"unknown field (with the value {shown(raw)}), accepted are {', '.join(accepted)}{hint}"


def shown(raw: object) -> str:
    """A value as the person wrote it, cut to a readable length."""
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return str(raw).lower()
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def described(kind: Any) -> str:
    """The words for what a type accepts."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(shown(a) for a in arguments)
    if is_union(kind):
        return " or ".join(described(a) for a in arguments)
    if origin in (list, tuple):
        return f"a list (each entry {described(arguments[0])})" if arguments else "a list"
    if origin is dict:
        return f"a mapping of names (each value {described(arguments[1])})"
    if dataclasses.is_dataclass(kind):
        return "a mapping with " + ", ".join(name for name, _, _ in fields_of(cast(type, kind)))
    return _SCALARS.get(kind, getattr(kind, "__name__", str(kind)))


_SCALARS: dict[Any, str] = {
    str: "text",
    Path: "text (a local path)",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "nothing",
}
_LARGEST = 2**63 - 1
"""What Arrow and a tensor can hold."""

_INVALID: Any = object()


@dataclass(frozen=True, slots=True)
class _Decoder:
    mistakes: list[Mistake]
    custom: Mapping[type, CustomDecoder]

    def decode(self, kind: Any, raw: object, path: str) -> Any:
        origin = typing.get_origin(kind)
        if kind in self.custom:
            return self._custom(self.custom[kind], raw, path)
        if dataclasses.is_dataclass(kind):
            return self._dataclass(cast(type, kind), raw, path)
        if origin is Literal:
            return self._literal(kind, raw, path)
        if is_union(kind):
            return self._union(kind, raw, path)
        if origin in (list, tuple):
            return self._sequence(kind, raw, path)
        if origin is dict:
            return self._mapping(kind, raw, path)
        return self._scalar(kind, raw, path)

    def _refuse(self, kind: Any, raw: object, path: str, hint: str = "") -> Any:
        self.mistakes.append(Mistake(path, f"expected {described(kind)}, got {shown(raw)}{hint}"))
        return _INVALID

    def _custom(self, decoder: CustomDecoder, raw: object, path: str) -> Any:
        try:
            return decoder(raw, path)
        except DecodeError as error:
            self.mistakes.extend(error.mistakes)
            return _INVALID

    def _dataclass(self, kind: type, raw: object, path: str) -> Any:
        if not isinstance(raw, Mapping):
            return self._refuse(kind, raw, path, "; indent its fields below it")
        fields = {name: (hint, field) for name, hint, field in fields_of(kind)}
        before = len(self.mistakes)
        for key in raw:
            if key not in fields:
                message = unknown_field(raw[key], str(key), list(fields))
                self.mistakes.append(Mistake(join_path(path, key), message))
        values: dict[str, Any] = {}
        for name, (hint, field) in fields.items():
            if name in raw:
                values[name] = self.decode(hint, raw[name], join_path(path, name))
            elif is_required(field):
                message = f"required, but missing; add {name!r}, {described(hint)}"
                self.mistakes.append(Mistake(join_path(path, name), message))
        if len(self.mistakes) > before:
            return _INVALID
        try:
            return kind(**values)
        except ValueError as error:
            self.mistakes.append(Mistake(path, str(error)))
            return _INVALID

    def _literal(self, kind: Any, raw: object, path: str) -> Any:
        for choice in typing.get_args(kind):
            if choice == raw and type(choice) is type(raw):
                return choice
        choices = [str(choice) for choice in typing.get_args(kind)]
        return self._refuse(kind, raw, path, suggestion(str(raw), choices) or "; choose one of these")

    def _union(self, kind: Any, raw: object, path: str) -> Any:
        members = [member for member in typing.get_args(kind) if member is not type(None)]
        if raw is None and len(members) < len(typing.get_args(kind)):
            return None
        if len(members) == 1:
            return self.decode(members[0], raw, path)
        for member in members:
            attempt = _Decoder([], self.custom)
            value = attempt.decode(member, raw, path)
            if not attempt.mistakes:
                return value
        return self._refuse(kind, raw, path, "; write one of these")

    def _sequence(self, kind: Any, raw: object, path: str) -> Any:
        if not isinstance(raw, list):
            return self._refuse(kind, raw, path, "; write it as [a, b] or as lines that begin with '- '")
        build, arguments = typing.get_origin(kind), typing.get_args(kind)
        if build is tuple and arguments[-1] is not Ellipsis:
            if len(raw) != len(arguments):
                message = f"expected {len(arguments)} entries, got {len(raw)} ({shown(raw)}); list each once"
                self.mistakes.append(Mistake(path, message))
                return _INVALID
            kinds = list(arguments)
        else:
            kinds = [arguments[0]] * len(raw)
        return build(
            self.decode(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(kinds, raw, strict=True))
        )

    def _mapping(self, kind: Any, raw: object, path: str) -> Any:
        if not isinstance(raw, Mapping):
            return self._refuse(kind, raw, path, "; indent its entries below it")
        value_kind = typing.get_args(kind)[1]
        return {str(key): self.decode(value_kind, item, join_path(path, key)) for key, item in raw.items()}

    def _scalar(self, kind: Any, raw: object, path: str) -> Any:
        if kind is Path and isinstance(raw, str):
            return Path(raw)
        if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            return (
                float(raw) if math.isfinite(raw) else self._refuse(kind, raw, path, "; write a finite number")
            )
        if kind is int and type(raw) is int and abs(raw) > _LARGEST:
            return self._refuse(kind, raw, path, f"; write one of at most {_LARGEST:,}")
        if type(raw) is kind:
            return raw
        hint = "; write it in quotes" if kind is str and raw is not None else "; correct the value"
        if kind in (int, float, bool) and isinstance(raw, str):
            hint = "; write it without quotes"
        if kind is int and isinstance(raw, float):
            hint = "; write it without a decimal point or exponent"
        if raw is None:
            hint = "; write a value after the colon or remove the line"
        return self._refuse(kind, raw, path, hint)
