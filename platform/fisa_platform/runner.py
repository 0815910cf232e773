"""Plans and runs jobs: finds what each reads, skips what is up to date, commits what it wrote."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fisa_platform import compute, manifest, pointer, storage
from fisa_platform.job import Job, StageContext, to_json, what_data_depends_on
from fisa_platform.manifest import Input, Version
from fisa_platform.model_check import model_problems
from fisa_platform.sources import archive


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one job ended."""

    name: str
    version: Version | None
    """The committed version; None for a stage that writes none."""

    ran: bool
    """False when the version was there already."""

    seconds: float
    message: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one job would do, found without running it."""

    name: str
    job: Job
    reads: dict[str, str]
    """Dotted field name, and the location with its state in words."""

    state: str
    """"done", "to run" or "not ready", in words for a person."""

    problems: list[str]
    """What would stop the job."""


def run_jobs(jobs: Mapping[str, Job], progress: Callable[[str], None], *, at_once: int = 1) -> list[Outcome]:
    """Run jobs in order; a later job reads exactly the versions that earlier ones made.

    Of jobs that wait for no other up to `at_once` run at the same time. When one fails, no other is begun,
    and its error is raised once those that run are done.
    """
    outcomes: dict[str, Outcome] = {}
    made: dict[str, Version] = {}

    def run(name: str) -> None:
        label = f"[{list(jobs).index(name) + 1}/{len(jobs)}] {name}: "
        job = jobs[name]
        outcomes[name] = outcome = run_job(name, job, partial(_labelled, progress, label), dict(made))
        if outcome.version is not None and job.output_uri is not None:
            made[job.output_uri] = outcome.version

    if at_once == 1:
        for name in jobs:
            run(name)
    else:
        _run_at_once(_sources(jobs), run, at_once)
    return [outcomes[name] for name in jobs]


def _sources(jobs: Mapping[str, Job]) -> dict[str, set[str]]:
    """For each job the earlier ones that write what it reads, or write where it writes."""
    writers: dict[str, str] = {}
    sources: dict[str, set[str]] = {}
    for name, job in jobs.items():
        touched = {*job.input_uris().values(), *([job.output_uri] if job.output_uri else [])}
        sources[name] = {
            writer
            for written, writer in writers.items()
            for uri in touched
            if f"{uri}/".startswith(f"{written.rstrip('/')}/")
        }
        if job.output_uri is not None:
            writers[job.output_uri] = name
    return sources


def _run_at_once(sources: Mapping[str, set[str]], run: Callable[[str], None], at_once: int) -> None:
    """Call `run` with every name, in their order, once all that a name waits for are done."""
    waiting, done = list(sources), set[str]()
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(at_once, thread_name_prefix="job") as pool:
        while waiting or running:
            ready = [name for name in waiting if sources[name] <= done]
            for name in ready[: at_once - len(running)]:
                waiting.remove(name)
                running[pool.submit(run, name)] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done.add(running.pop(future))
                future.result()


def run_job(
    name: str, job: Job, progress: Callable[[str], None], made: Mapping[str, Version] | None = None
) -> Outcome:
    """Run one job unless it is up to date; `made` holds versions to read in place of the latest."""
    try:
        return _run_job(name, job, made or {}, progress)
    except Exception as error:
        error.add_note(f"in {name!r}")
        raise


def plan_jobs(jobs: Mapping[str, Job]) -> list[Plan]:
    """What `run_jobs` would do; looks at inputs and outputs, writes nothing."""
    plans: list[Plan] = []
    made: dict[str, Version | None] = {}
    for name, job in jobs.items():
        plan, version = _plan_job(name, job, made)
        plans.append(plan)
        if job.output_uri is not None:
            made[job.output_uri] = version
    return plans


def _labelled(progress: Callable[[str], None], label: str, line: str) -> None:
    progress(label + line)


def outline_jobs(jobs: Mapping[str, Job]) -> list[Plan]:
    """What `run_jobs` would read and write, without looking at any location."""
    return [
        Plan(
            name=name,
            job=job,
            reads=job.input_uris(),
            state="not looked at",
            problems=model_problems(job.config),
        )
        for name, job in jobs.items()
    ]


def _run_job(name: str, job: Job, made: Mapping[str, Version], progress: Callable[[str], None]) -> Outcome:
    started = time.monotonic()
    inputs = {path: _read_input(uri, made) for path, uri in job.input_uris().items()}
    config = job.with_inputs({path: value.uri for path, value in inputs.items()})
    output_uri = job.output_uri
    pending = None
    if output_uri is not None:
        fingerprint = _fingerprint(job, inputs)
        pointer.check(output_uri)
        version = manifest.find_version(storage.join(output_uri, fingerprint))
        if version is not None:
            if problem := _lost_too_much(job, version):
                raise ValueError(problem)
            manifest.publish(output_uri, version)
            progress(f"up to date (version {fingerprint})")
            message = version.manifest.extra.get("message")
            return Outcome(name=name, version=version, ran=False, seconds=0.0, message=message)
        pending = manifest.new_version(output_uri, fingerprint)
        _make_folder(output_uri)
    problems = model_problems(job.config)
    problems += [problem for path, found in inputs.items() for problem in _content_problem(job, path, found)]
    if problems:
        raise ValueError("; ".join(problems))
    if job.stage.uses_ray:
        compute.connect()
        compute.check_fits(job.compute)
    if pending is not None:
        progress(f"started (version {pending.fingerprint})")
    if note := _of_other_images(inputs):
        progress(note)
    result = job.stage.run(config, job.compute, StageContext(output=pending, progress=progress))
    seconds = time.monotonic() - started
    version = None
    if pending is not None:
        version = manifest.commit(
            pending,
            stage=job.stage_name,
            config=to_json(config),
            inputs=inputs,
            seconds=seconds,
            rows=result.rows,
            vocabulary=result.vocabulary,
            extra={**result.extra, **({"message": result.message} if result.message else {})},
            files=result.files,
            folders=result.folders,
        )
    message = result.message
    if version is not None and pending is not None and version.manifest.run_id != pending.run_id:
        progress("another run of the same job committed this version first; its files are the ones to use")
        message = version.manifest.extra.get("message")
    progress(f"finished in {seconds:.1f} s" + (f", {result.rows} rows" if result.rows is not None else ""))
    return Outcome(name=name, version=version, ran=True, seconds=seconds, message=message)


def _lost_too_much(job: Job, version: Version) -> str | None:
    """What is wrong with a version that a run with a higher `max_rejected_fraction` made."""
    allowed = getattr(job.config, "max_rejected_fraction", None)
    rejected, rows = version.manifest.extra.get("rejected", 0), version.manifest.rows or 0
    if allowed is None or rejected <= allowed * (rows + rejected):
        return None
    return (
        f"{version.uri} was made without {rejected} of {rows + rejected} images, max_rejected_fraction is "
        f"{allowed:g}; its table `rejected` has the reasons: mend or remove these images, or raise "
        "config.max_rejected_fraction"
    )


def _fingerprint(job: Job, inputs: Mapping[str, Input]) -> str:
    config = what_data_depends_on(job.config)
    return manifest.fingerprint_of(job.stage_name, config, inputs, revision=job.stage.revision)


def _read_input(uri: str, made: Mapping[str, Version]) -> Input:
    # Asked first, so that a bucket's refusal names what the spec says, not a manifest below it.
    version = made.get(uri) or (manifest.find_version(uri) if storage.exists(uri) else None)
    if version is not None:
        return Input(uri=version.uri, digest=version.digest)
    return Input(uri=uri, digest=archive.fingerprint(uri))


def _of_other_images(inputs: Mapping[str, Input]) -> str | None:
    """A note where proposals were made for another table than the one they are used with.

    It may be the same table, sharded anew; if it is not, ids that coincide join masks to foreign pictures.
    """
    images, proposals = inputs.get("images_uri"), inputs.get("proposals_uri")
    if images is None or proposals is None or manifest.find_version(images.uri) is None:
        return None
    version = manifest.find_version(proposals.uri)
    made_for = None if version is None else version.manifest.inputs.get("images_uri")
    if made_for is None or made_for.uri == images.uri:
        return None
    return (
        f"note: the proposals were made for {made_for.uri}, not for {images.uri}; pictures find theirs by "
        "image_id, so these must be the same pictures"
    )


def _plan_job(name: str, job: Job, made: Mapping[str, Version | None]) -> tuple[Plan, Version | None]:
    inputs: dict[str, Input] = {}
    reads: dict[str, str] = {}
    problems = model_problems(job.config)
    input_uris = job.input_uris()
    known = {uri: version for uri, version in made.items() if version is not None}
    for path, uri in input_uris.items():
        if uri in made and made[uri] is None:
            reads[path] = f"{uri} (written by an earlier step)"
            continue
        try:
            inputs[path] = _read_input(uri, known)
            reads[path] = f"{uri} (there)"
            problems += _content_problem(job, path, inputs[path])
        except (OSError, ValueError) as error:
            absent = isinstance(error, FileNotFoundError)
            reads[path] = f"{uri} ({'missing' if absent else 'cannot be looked at'})"
            problems.append(f"config.{path}: {error}")
    version = None
    if job.output_uri is not None:
        try:
            _check_writable(job.output_uri)
            pointer.check(job.output_uri)
            if len(inputs) == len(input_uris):
                version = manifest.find_version(storage.join(job.output_uri, _fingerprint(job, inputs)))
            if version is not None and (problem := _lost_too_much(job, version)):
                problems.append(problem)
        except (OSError, ValueError) as error:
            problems.append(f"config.output_uri: {error}")
    state = "not ready" if problems else f"done (version {version.fingerprint})" if version else "to run"
    return Plan(name=name, job=job, reads=reads, state=state, problems=problems), version


_CONTENT = {
    "weights_uri": ("", ".safetensors", "weights; give what `train` wrote, or a .safetensors file"),
    "proposals_uri": ("proposals/", ".parquet", "proposals; give what `propose` wrote"),
    "images_uri": ("images/", ".parquet", "images; give what `shard` wrote"),
}
"""How files begin and end that a version must have for a field, and words for them."""


def _content_problem(job: Job, path: str, found: Input) -> list[str]:
    """What is wrong with a place that has other things than its field is for."""
    name = "images_uri" if path.startswith("other_truth_uris.") else path.rpartition(".")[2]
    if name not in _CONTENT or found.uri.endswith(".safetensors") or job.stage_name == "shard":
        return []
    prefix, suffix, words = _CONTENT[name]
    version = manifest.find_version(found.uri)
    is_folder_of_pictures = version is None and name == "images_uri" and job.stage_name == "label"
    if is_folder_of_pictures or (version is not None and version.files(prefix, suffix)):
        return []
    return [f"config.{path}: {found.uri}: holds no version of {words}"]


def _make_folder(output_uri: str) -> None:
    """Find out before the work, rather than after it, that a local folder cannot be made."""
    if not storage.is_local(output_uri):
        return
    try:
        Path(output_uri).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"config.output_uri: {output_uri}: cannot be made ({error.strerror}); choose another"
        ) from error
    if not os.access(output_uri, os.W_OK):
        raise PermissionError(f"config.output_uri: {output_uri}: cannot be written; choose another")


def _check_writable(output_uri: str) -> None:
    """Refuse a folder that cannot be made and, by looking there, a bucket that cannot be reached."""
    storage.exists(output_uri)
    if not storage.is_local(output_uri):
        return
    folder = Path(output_uri)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{output_uri}: cannot be written, {folder} is no folder with write access; choose another"
        )
