"""Versions of datasets: data files under unique names, then `manifest.json`, last and never overwritten.

`output_uri/<fingerprint>/manifest.json` makes a version; `output_uri/latest.json` points to one of them.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fisa_platform
from fisa_platform import git_commit, pointer, storage

if TYPE_CHECKING:
    import pyarrow.dataset

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What a version was made from."""

    uri: str
    """The version, file or folder that was read."""

    digest: str
    """SHA-256 of the input's manifest, or the fingerprint of a file or folder that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One file of a version."""

    path: str
    """Path relative to the version; its first part names the run that wrote it."""

    bytes: int
    sha256: str
    rows: int | None = None
    """Rows of a Parquet file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFolder:
    """A folder with a small file for each image, too many to be named one by one."""

    path: str
    """As that of a file."""

    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything about a version, so that each number can be traced to the bytes it came from."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    config: dict[str, Any]
    """The stage's config with every input resolved to a version."""

    code_version: str = fisa_platform.__version__
    git_commit: str | None = None
    created_at: str
    """Time of the commit, UTC, ISO 8601."""

    seconds: float
    """Wall time of the stage."""

    inputs: dict[str, Input]
    run_id: str | None = None
    """The attempt that committed; its files may be those of earlier attempts, too."""

    rows: int | None = None
    files: list[DataFile] = field(default_factory=list)
    folders: list[DataFolder] = field(default_factory=list)
    vocabulary: list[dict[str, Any]] | None = None
    """Categories in COCO's form: id, name, isthing, synonyms."""

    extra: dict[str, Any] = field(default_factory=dict)
    """What only this stage knows, such as its scores or the rows it rejected."""

    @staticmethod
    def from_dict(raw: Mapping[str, Any], uri: str) -> "Manifest":
        """The manifest found at `uri`."""
        if raw.get("schema_version") != SCHEMA_VERSION:
            found = raw.get("schema_version")
            raise ValueError(
                f"{uri}: schema_version is {found!r}, expected {SCHEMA_VERSION}; write this version anew"
            )
        inputs = {name: Input(**value) for name, value in raw["inputs"].items()}
        files = [DataFile(**value) for value in raw["files"]]
        folders = [DataFolder(**value) for value in raw.get("folders", [])]
        return Manifest(**{**raw, "inputs": inputs, "files": files, "folders": folders})


@dataclass(frozen=True, slots=True)
class Version:
    """A committed version."""

    uri: str
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest's bytes."""

    @property
    def fingerprint(self) -> str:
        """The name of the version below its `output_uri`."""
        return self.uri.rsplit("/", 1)[-1]

    def files(self, prefix: str = "", suffix: str = "") -> list[str]:
        """URIs of the data files whose path within the run's folder has this beginning and end."""
        return [
            storage.join(self.uri, file.path)
            for file in self.manifest.files
            if _name_in_run(file.path).startswith(prefix) and file.path.endswith(suffix)
        ]

    def file(self, name: str) -> str:
        """URI of the data file that the stage wrote as `name`."""
        found = [uri for uri in self.files(prefix=name) if uri.endswith("/" + name)]
        if not found:
            names = sorted(_name_in_run(file.path) for file in self.manifest.files)
            raise FileNotFoundError(
                f"{self.uri}: has no file {name!r}; it has {', '.join(names[:10]) or 'none'}"
            )
        return found[0]

    def folder(self, name: str) -> str:
        """URI of a folder with a file for each image; raises as `file`."""
        found = {folder.path.rpartition("/")[2]: folder.path for folder in self.manifest.folders}
        if name not in found:
            raise FileNotFoundError(
                f"{self.uri}: has no folder {name!r}; it has {', '.join(found) or 'none'}"
            )
        return storage.join(self.uri, found[name])

    def dataset(self, prefix: str = "") -> "pyarrow.dataset.Dataset":
        """The rows of the Parquet files below `prefix`; only files that the manifest names are read."""
        import pyarrow.dataset

        uris = self.files(prefix=prefix, suffix=".parquet")
        if not uris:
            raise FileNotFoundError(
                f"{self.uri}: has no Parquet files below {prefix!r}; was another stage meant?"
            )
        opened = [storage.pyarrow_filesystem(uri) for uri in uris]
        return pyarrow.dataset.dataset(
            [path for _, path in opened], filesystem=opened[0][0], format="parquet"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingVersion:
    """A version that is being written, and does not exist to readers."""

    output_uri: str
    fingerprint: str
    run_id: str
    """Unique to this attempt, so that files of a killed attempt are never part of the version."""

    @property
    def version_uri(self) -> str:
        """Where the version will be."""
        return storage.join(self.output_uri, self.fingerprint)

    @property
    def uri(self) -> str:
        """The folder for everything that this attempt writes."""
        return storage.join(self.version_uri, self.run_id)


def fingerprint_of(
    stage: str, config: Mapping[str, Any], inputs: Mapping[str, Input], *, revision: int = 1
) -> str:
    """The name of the version that this revision of a stage makes from this config and these inputs."""
    digests = {name: value.digest for name, value in inputs.items()}
    facts = {"stage": stage, "revision": revision, "config": config, "inputs": digests}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def new_version(output_uri: str, fingerprint: str) -> PendingVersion:
    """Begin an attempt at a version."""
    return PendingVersion(
        output_uri=output_uri, fingerprint=fingerprint, run_id=f"run-{uuid.uuid4().hex[:12]}"
    )


def commit(
    pending: PendingVersion,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
    seconds: float,
    rows: int | None = None,
    vocabulary: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
    files: Sequence[str] | None = None,
    folders: Sequence[str] = (),
) -> Version:
    """Make the attempt the version, or accept the version that another run committed first.

    `files` names the data files when they are not simply everything below `pending.uri`; `folders` names
    folders there whose files are only counted.
    """
    sizes = storage.list_files(pending.version_uri)
    manifest = Manifest(
        stage=stage,
        config=dict(config),
        git_commit=git_commit(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        inputs=dict(inputs),
        run_id=pending.run_id,
        rows=rows,
        files=_describe_files(pending, files, sizes),
        folders=[_describe_folder(f"{pending.run_id}/{name}", sizes) for name in folders],
        vocabulary=[dict(category) for category in vocabulary] if vocabulary is not None else None,
        extra=dict(extra or {}),
    )
    try:
        storage.write_json(storage.join(pending.version_uri, MANIFEST_NAME), asdict(manifest), exclusive=True)
    except FileExistsError:
        # The other run had the same stage, config and inputs, so its data serves as well.
        pass
    version = open_version(pending.version_uri)
    publish(pending.output_uri, version)
    return version


def publish(output_uri: str, version: Version) -> None:
    """Make `version` the one that `output_uri` stands for."""
    if pointer.read(output_uri) != version.fingerprint:
        pointer.write(output_uri, version.fingerprint)


def find_version(uri: str) -> Version | None:
    """The version at `uri`: itself, or the latest below it; None when there is neither."""
    version = _read_version(uri)
    if version is not None:
        return version
    name = pointer.read(uri)
    return None if name is None else _read_version(storage.join(uri, name))


def open_version(uri: str) -> Version:
    """The version at `uri`, as `find_version`.

    Raises:
        FileNotFoundError: there is no committed version.
    """
    version = find_version(uri)
    if version is None:
        raise FileNotFoundError(
            f"{uri}: holds no committed version (no {MANIFEST_NAME}); run the stage that writes it, or "
            "give one of those that `fisa status` lists"
        )
    return version


def list_versions(output_uri: str) -> list[Version]:
    """Every committed version below `output_uri`, oldest first."""
    folders = (name for name in storage.list_folders(output_uri) if re.fullmatch(pointer.VERSION_NAME, name))
    found = (_read_version(storage.join(output_uri, name)) for name in folders)
    return sorted((v for v in found if v is not None), key=lambda v: v.manifest.created_at)


def find_datasets(uri: str, depth: int = 5) -> list[str]:
    """Every `output_uri` at or below `uri` that holds versions; those of a study lie deepest."""
    if pointer.read(uri) is not None:
        return [uri]
    if depth == 0:
        return []
    folders = [storage.join(uri, name) for name in storage.list_folders(uri)]
    return [found for folder in folders for found in find_datasets(folder, depth - 1)]


def _read_version(uri: str) -> Version | None:
    manifest_uri = storage.join(uri, MANIFEST_NAME)
    if not storage.exists(manifest_uri):
        return None
    data = storage.read_bytes(manifest_uri)
    try:
        manifest = Manifest.from_dict(json.loads(data), manifest_uri)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{manifest_uri}: not a manifest of this platform ({error}); was it edited?"
        ) from error
    return Version(uri.rstrip("/"), manifest, hashlib.sha256(data).hexdigest())


def _name_in_run(path: str) -> str:
    return path.split("/", 1)[-1]


def _describe_folder(path: str, sizes: Mapping[str, int]) -> DataFolder:
    found = [size for name, size in sizes.items() if name.startswith(f"{path}/")]
    return DataFolder(path=path, files=len(found), bytes=sum(found))


def _describe_files(
    pending: PendingVersion, files: Sequence[str] | None, sizes: Mapping[str, int]
) -> list[DataFile]:
    if files is None:
        paths = [path for path in sizes if path.startswith(pending.run_id + "/")]
    else:
        paths = [uri.removeprefix(pending.version_uri + "/") for uri in files]
        missing = [path for path in paths if path not in sizes]
        if missing:
            raise FileNotFoundError(
                f"{pending.version_uri}: {missing[0]!r} was named by the stage but is not there"
            )

    def describe(path: str) -> DataFile:
        uri = storage.join(pending.version_uri, path)
        rows = _parquet_rows(uri) if path.endswith(".parquet") else None
        return DataFile(path=path, bytes=sizes[path], sha256=storage.sha256_of(uri), rows=rows)

    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(describe, paths))


def _parquet_rows(uri: str) -> int:
    import pyarrow.parquet

    filesystem, path = storage.pyarrow_filesystem(uri)
    return int(pyarrow.parquet.read_metadata(path, filesystem=filesystem).num_rows)
