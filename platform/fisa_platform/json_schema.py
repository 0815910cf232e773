"""JSON Schema of all job specs, so that editors complete and check them."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from fisa_platform.compute import Compute
from fisa_platform.decode import fields_of, is_required, is_union
from fisa_platform.job import Job, Stage

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: dict[Any, dict[str, str]] = {
    str: {"type": "string"},
    Path: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def spec_schema(stages: Mapping[str, Stage], step_stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The schema of a spec file; a step of a pipeline has the same form with fewer stages."""
    definitions: dict[str, Any] = {}
    definitions["step"] = _job_schema(step_stages, definitions)
    spec = _job_schema(stages, definitions)
    return {"$schema": DIALECT, "title": "FISA job spec", **spec, "$defs": definitions}


def _job_schema(stages: Mapping[str, Stage], definitions: dict[str, Any]) -> dict[str, Any]:
    choices = [
        {
            "if": {"properties": {"stage": {"const": name}}, "required": ["stage"]},
            "then": {"properties": {"config": _schema_of(stage.config, definitions)}},
        }
        for name, stage in stages.items()
    ]
    return {
        "type": "object",
        "properties": {
            "stage": {"enum": list(stages), "description": "What to run."},
            "config": {"type": "object"},
            "compute": _schema_of(Compute, definitions),
        },
        "required": ["stage", "config"],
        "additionalProperties": False,
        "allOf": choices,
    }


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Job:
        return {"$ref": "#/$defs/step"}
    if dataclasses.is_dataclass(kind):
        return _dataclass_schema(cast(type, kind), definitions)
    if origin is Literal:
        return {"enum": list(arguments)}
    if is_union(kind):
        return {"anyOf": [_schema_of(member, definitions) for member in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        entries = [_schema_of(member, definitions) for member in arguments]
        return {"type": "array", "prefixItems": entries, "minItems": len(entries), "maxItems": len(entries)}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    return dict(_SCALARS[kind])


def _dataclass_schema(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    name = f"{kind.__module__.rsplit('.', 1)[-1]}.{kind.__name__}"
    reference = {"$ref": f"#/$defs/{name}"}
    if name in definitions:
        return reference
    definitions[name] = {}
    sentences = field_sentences(kind)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field_name, hint, field in fields_of(kind):
        entry = _schema_of(hint, definitions)
        if field_name in sentences:
            entry["description"] = sentences[field_name]
        if is_required(field):
            required.append(field_name)
        elif _is_plain(field.default):
            entry["default"] = field.default
        properties[field_name] = entry
    definitions[name] = {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return reference


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | None) and json.loads(json.dumps(value)) == value


def field_sentences(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, as its source has it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = cast(ast.ClassDef, tree.body[0]).body
    found: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if is_field and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            target = cast(ast.Name, cast(ast.AnnAssign, statement).target)
            found[target.id] = inspect.cleandoc(str(following.value.value))
    return found
