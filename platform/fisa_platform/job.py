"""A job: one stage with its config and its compute, and what a stage is given and gives back."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fisa_model.config import LOCAL_DIR
from fisa_platform import storage
from fisa_platform.compute import Compute
from fisa_platform.decode import join_path
from fisa_platform.manifest import PendingVersion


class StageContext:
    """The surroundings of one run of a stage."""

    def __init__(self, *, output: PendingVersion | None, progress: Callable[[str], None]) -> None:
        self._output = output
        self.progress = progress
        """Shows one line about how far the stage is."""

    @property
    def output(self) -> PendingVersion:
        """Where to write: everything goes below `output.uri`, and the runner commits it afterwards."""
        if self._output is None:
            raise RuntimeError("this stage writes no version; its config has no output_uri")
        return self._output


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """What the runner writes into the manifest after a stage."""

    rows: int | None = None
    """Rows of the stage's main table."""

    vocabulary: Sequence[Mapping[str, Any]] | None = None
    """Categories in COCO's form."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that only this stage knows."""

    message: str | None = None
    """Shown at the end of the job, also when the stage was up to date."""

    files: Sequence[str] | None = None
    """URIs of the data files below `output.version_uri`; nothing means everything below `output.uri`."""

    folders: Sequence[str] = ()
    """Names of folders in `output.uri` whose files are counted, not named."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the stage table."""

    config: type
    """The dataclass that `config:` of a spec is decoded into."""

    run: Callable[[Any, Compute, StageContext], StageResult]

    uses_ray: bool = field(default=True, kw_only=True)
    """The runner connects to Ray first."""

    versioned: bool = field(default=True, kw_only=True)
    """Writes a version at `config.output_uri`, and is skipped when that is there."""

    revision: int = field(default=1, kw_only=True)
    """Raised where the same config and inputs give other data than before, a changed default among them:
    versions that are there are then made anew. A release that changes no data makes nothing anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A decoded spec."""

    stage_name: str
    stage: Stage
    config: Any
    """An instance of `stage.config`; its locations are absolute."""

    compute: Compute

    @property
    def output_uri(self) -> str | None:
        """Where the job's version goes."""
        return str(self.config.output_uri) if self.stage.versioned else None

    def input_uris(self) -> dict[str, str]:
        """Dotted field name and location of everything the job reads."""
        found: dict[str, str] = {}

        def record(path: str, uri: str) -> str:
            if path != "output_uri":
                found[path] = uri
            return uri

        map_uris(self.config, record)
        return {**found, **dict(_local_models(self.config))}

    def with_inputs(self, locations: Mapping[str, str]) -> Any:
        """The config with locations replaced, by their dotted names."""
        return map_uris(self.config, lambda path, uri: locations.get(path, uri))


def map_uris(
    value: Any, change: Callable[[str, str], str], path: str = "", *, is_location: bool = False
) -> Any:
    """A copy of a config in which every location is `change(dotted name, location)`.

    Locations are the strings in fields named `..._uri`, and in lists or mappings in fields named `..._uris`.
    """
    if isinstance(value, str):
        return change(path, value) if is_location else value
    if isinstance(value, list | tuple):
        items = (map_uris(v, change, f"{path}[{i}]", is_location=is_location) for i, v in enumerate(value))
        return type(value)(items)
    if isinstance(value, Mapping):
        return {k: map_uris(v, change, join_path(path, k), is_location=is_location) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, Job | type):
        names = [member.name for member in dataclasses.fields(value) if member.init]
        changed = {
            name: map_uris(
                getattr(value, name),
                change,
                join_path(path, name),
                is_location=name.endswith(("_uri", "_uris")),
            )
            for name in names
        }
        return dataclasses.replace(value, **changed)
    return value


def _local_models(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and location of every model of a config that is a local file or folder."""
    if not dataclasses.is_dataclass(value) or isinstance(value, Job):
        return
    for member in dataclasses.fields(value):
        name, found = join_path(path, member.name), getattr(value, member.name)
        if location := _local_model(member.name, found):
            yield name, location
        else:
            yield from _local_models(found, name)


def _local_model(name: str, value: object) -> str | None:
    """Where a field's model is, if on this disk: weights and CLIPs may also be named on a hub."""
    if not isinstance(value, str) or not value:
        return None
    if value.startswith(LOCAL_DIR):
        return storage.make_absolute(value.removeprefix(LOCAL_DIR))
    is_weights = name.endswith("weights") and "://" not in value
    return storage.make_absolute(value) if is_weights and os.path.exists(os.path.expanduser(value)) else None


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def what_data_depends_on(value: Any) -> Any:
    """A config as plain JSON values, without what changes no data or is known otherwise.

    Digests of the inputs stand for locations and local models. A tolerance is left out, so that a job that
    lost too many images goes on with what it did once `max_rejected_fraction` is raised; so is `tracking`,
    which only watches. A field at its
    default is left out, so that one that a later release adds makes nothing anew (`Stage.revision` is for
    other changes).
    """
    if dataclasses.is_dataclass(value):
        return {
            member.name: what_data_depends_on(getattr(value, member.name))
            for member in dataclasses.fields(value)
            if not member.name.endswith(("_uri", "_uris", "max_rejected_fraction"))
            and member.name != "tracking"
            and not _local_model(member.name, getattr(value, member.name))
            and getattr(value, member.name) != _default_of(member)
        }
    if isinstance(value, Mapping):
        return {key: what_data_depends_on(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [what_data_depends_on(item) for item in value]
    return value


def _default_of(member: dataclasses.Field[Any]) -> Any:
    """What the field is where a spec does not name it; MISSING, which equals no value, where it must."""
    if member.default_factory is not dataclasses.MISSING:
        return member.default_factory()
    return member.default
