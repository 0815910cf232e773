"""Job specs: a YAML file becomes a `Job`, or every mistake in it becomes one sentence."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fisa_platform import storage
from fisa_platform.compute import Compute
from fisa_platform.decode import DecodeError, Mistake, decode, join_path, shown, suggestion, unknown_field
from fisa_platform.job import Job, Stage, map_uris
from fisa_platform.overrides import apply_overrides
from fisa_platform.stages import STAGES
from fisa_platform.yaml_source import YamlSource, read_yaml

KEYS = ("stage", "config", "compute")
OF_JOBS = ("pipeline", "experiment")
"""Stages whose config holds jobs, each with a compute of its own."""


class SpecError(ValueError):
    """Every mistake of one spec, each a sentence with its place."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a spec file; `overrides` are texts like `config.iterations=100`.

    Raises:
        SpecError: with every mistake.
    """
    source = YamlSource(None)
    try:
        source = read_yaml(_read_text(Path(path)))
        if source.data is None:
            raise DecodeError([Mistake("", f"the file holds no spec; write the keys {', '.join(KEYS)}")])
        return job_from_data(apply_overrides(source.data, overrides))
    except DecodeError as error:
        raise SpecError([_sentence(str(path), m, source, overrides) for m in error.mistakes]) from error


def job_from_data(raw: object) -> Job:
    """Decode a spec's plain data.

    Raises:
        DecodeError: with every mistake.
    """
    return _decode_job(raw, "")


def step_stages() -> dict[str, Stage]:
    """The stages that a step of a pipeline may name."""
    return {name: stage for name, stage in STAGES.items() if name not in OF_JOBS}


def jobs_of(job: Job) -> dict[str, Job]:
    """The jobs that a spec runs, by name: a pipeline's steps, an experiment's cells too, or only itself."""
    if job.stage_name in OF_JOBS:
        jobs: dict[str, Job] = job.config.jobs
        return jobs
    return {job.stage_name: job}


def _decode_job(raw: object, path: str) -> Job:
    if not isinstance(raw, Mapping):
        accepted = f"a mapping with the keys {', '.join(KEYS)}"
        message = f"expected {accepted}, got {shown(raw)}; write 'stage: ...' below it"
        raise DecodeError([Mistake(path, message)])
    mistakes = [
        Mistake(join_path(path, key), unknown_field(raw[key], str(key), KEYS))
        for key in raw
        if key not in KEYS
    ]
    compute = Compute()
    try:
        compute = decode(Compute, raw.get("compute", {}), join_path(path, "compute"))
    except DecodeError as error:
        mistakes += error.mistakes
    config: object = None
    stage_name = raw.get("stage")
    refusal = _refuse_stage(raw, is_step=bool(path))
    if refusal:
        mistakes.append(Mistake(join_path(path, "stage"), refusal))
    else:
        try:
            config = _decode_config(str(stage_name), raw.get("config", {}), join_path(path, "config"))
        except DecodeError as error:
            mistakes += error.mistakes
    if mistakes:
        raise DecodeError(mistakes)
    return Job(stage_name=str(stage_name), stage=STAGES[str(stage_name)], config=config, compute=compute)


def _refuse_stage(raw: Mapping[str, Any], *, is_step: bool) -> str | None:
    """What is wrong with the stage that a spec or a step names."""
    names = list(step_stages() if is_step else STAGES)
    name = raw.get("stage")
    if "stage" not in raw:
        return f"required, but missing; add 'stage', one of {', '.join(names)}"
    if name not in names:
        hint = suggestion(str(name), names) or "; choose one of these"
        return f"unknown stage {shown(name)}, accepted are {', '.join(names)}{hint}"
    if name in OF_JOBS and "compute" in raw:
        given = shown(raw["compute"])
        return f"stage {name!r} has no compute of its own (got {given}); move it into its steps"
    return None


def _decode_config(stage_name: str, raw: object, path: str) -> object:
    if stage_name in OF_JOBS:
        raw = _expand_output_uri(raw, path)
    kind: type[object] = STAGES[stage_name].config
    config: object = decode(kind, raw, path, custom={Job: _decode_job})
    mistakes: list[Mistake] = []

    def absolute(name: str, uri: str) -> str:
        try:
            return storage.make_absolute(uri)
        except ValueError as error:
            mistakes.append(Mistake(join_path(path, name), str(error)))
            return uri

    # Workers run in other folders, so a relative location would mean another place there.
    config = map_uris(config, absolute)
    if mistakes:
        raise DecodeError(mistakes)
    return config


def _expand_output_uri(raw: object, path: str) -> object:
    """The config with its `output_uri` put where its steps say `${output_uri}`."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("output_uri"), str):
        return raw
    mistakes: list[Mistake] = []

    def expand(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {key: expand(item, join_path(place, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [expand(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        text = value.replace("${output_uri}", raw["output_uri"].rstrip("/"))
        if "${" in text:
            mistakes.append(
                Mistake(place, f"unknown name in {shown(value)}, accepted is ${{output_uri}}; correct it")
            )
        return text

    steps = {key: expand(raw[key], join_path(path, key)) for key in ("steps", "cell") if key in raw}
    if mistakes:
        raise DecodeError(mistakes)
    return {**raw, **steps}


def _read_text(path: Path) -> str:
    if not path.is_file():
        folder = path.parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        if path.is_dir():
            raise DecodeError([Mistake("", "is a folder, not a spec; give a file in it")])
        raise DecodeError(
            [Mistake("", "no such file" + (suggestion(path.name, names) or "; check the path"))]
        )
    data = path.read_bytes()
    if b"\r\n" in data:
        message = (
            "has Windows line ends (CRLF), with which its first line cannot run it; save it with LF line ends"
        )
        raise DecodeError([Mistake("", message)])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text (byte {data[error.start]:#04x} at {error.start}); save it as UTF-8"
        raise DecodeError([Mistake("", message)]) from error


def _sentence(spec_path: str, mistake: Mistake, source: YamlSource, overrides: Sequence[str]) -> str:
    """File and line, or the `--set`, that made the mistake; then its dotted path and what is wrong."""
    origin, hint = spec_path, ""
    # What a config's own check refuses starts with the field's name.
    first_word = re.match(r"\w*", mistake.message)
    field_path = join_path(mistake.path, first_word.group() if first_word else "")
    line = source.lines.get(field_path) or source.line_of(mistake.path)
    set_by = [o for o in overrides if _made(o, mistake.path, field_path, source)]
    if set_by:
        origin = f"{spec_path} with --set {set_by[-1]}"
        hint = _other_step(mistake, source)
    elif line is not None and mistake.path:
        origin = f"{spec_path}:{line}"
    place = f"{origin}: {mistake.path}" if mistake.path else origin
    return f"{place}: {mistake.message}{hint}"


def _made(override: str, path: str, field_path: str, source: YamlSource) -> bool:
    """Whether an override set the value at a place or above it, or brought something above it into being."""
    place = override.partition("=")[0].strip()
    if any(where == place or where.startswith((f"{place}.", f"{place}[")) for where in (path, field_path)):
        return True
    keys = place.split(".")
    above = [".".join(keys[:count]) for count in range(1, len(keys))]
    new = next((where for where in above if where not in source.lines), None)
    return new is not None and f"{path}.".startswith(f"{new}.")


def _other_step(mistake: Mistake, source: YamlSource) -> str:
    """For a step that the file does not have, the one that may be meant."""
    found = re.match(r"(config\.steps)\.([^.]+)", mistake.path)
    if found is None or found.group() in source.lines:
        return ""
    start = f"{found[1]}."
    steps = {path.removeprefix(start).partition(".")[0] for path in source.lines if path.startswith(start)}
    return suggestion(found[2], sorted(steps))
