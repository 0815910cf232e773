"""Reads one YAML document into plain data, remembering the line of every dotted path."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from fisa_platform.decode import DecodeError, Mistake, join_path


@dataclass(frozen=True, slots=True)
class YamlSource:
    """Plain data and where each part of it stands."""

    data: Any
    lines: dict[str, int] = field(default_factory=dict)
    """Line number, from 1, of every dotted path."""

    def line_of(self, path: str) -> int | None:
        """The line of `path`, or of the closest thing above it that was written."""
        while path and path not in self.lines:
            path = re.sub(r"\.?[^.\[\]]*$|\[\d+\]$", "", path, count=1)
        return self.lines.get(path)


def read_yaml(text: str) -> YamlSource:
    """Parse one document; a key written twice is a mistake, not a replacement.

    Raises:
        DecodeError: the text is no YAML, or a mapping has a key twice or a key that is no text.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlSource(None)
        reader = _Reader(loader)
        data = reader.read(node, "")
    except yaml.MarkedYAMLError as error:
        raise DecodeError([Mistake("", _syntax_message(error))]) from error
    except yaml.YAMLError as error:
        message = f"not readable as YAML text ({' '.join(str(error).split())}); save the file as UTF-8 text"
        raise DecodeError([Mistake("", message)]) from error
    finally:
        loader.dispose()
    if reader.mistakes:
        raise DecodeError(reader.mistakes)
    return YamlSource(data, reader.lines)


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{place}not valid YAML ({problem}); check the indentation, colons and quotes there"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types: `no` and `on` are text, 1e-4 is a number, dates stay text."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


class _Reader:
    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.lines: dict[str, int] = {}
        self.mistakes: list[Mistake] = []
        self.open: list[yaml.Node] = []
        """From the document down to the node that is read."""

    def read(self, node: yaml.Node, path: str) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if node in self.open:
            self.mistakes.append(Mistake(path, f"line {line}: holds itself; write the values out"))
            return None
        self.open.append(node)
        try:
            return self._read(node, path)
        except UnicodeDecodeError:
            message = f"line {line}: half a letter (a lone surrogate); write it whole"
            self.mistakes.append(Mistake(path, message))
        except (ValueError, KeyError, AttributeError):
            message = f"line {line}: {node.value!r} is not what its tag {node.tag!r} says; leave the tag out"
            self.mistakes.append(Mistake(path, message))
        finally:
            self.open.pop()
        return None

    def _read(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        value = self.loader.construct_object(node)
        # JSON writes a letter beyond 16 bits as two halves.
        return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        self._find_repeated_keys(node, path)
        self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(self.loader.construct_object(key_node, deep=True))
            key_path = join_path(path, key)
            self.lines[key_path] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, key_path)
        return result

    def _find_repeated_keys(self, node: yaml.MappingNode, path: str) -> None:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                message = f"line {line}: expected a word as the key, got a {key_node.id}; write 'name: value'"
                self.mistakes.append(Mistake(path, message))
                continue
            key = key_node.value
            if key in first_lines:
                message = (
                    f"line {line}: written twice (first on line {first_lines[key]}); keep one of the two"
                )
                self.mistakes.append(Mistake(join_path(path, key), message))
            first_lines.setdefault(key, line)
