"""`RAY_JOB_SUBMIT_HOOK=fisa_platform.submit_hook.submit`: `ray job submit jobs/train.yaml` from any laptop.

The hook ships the checkout that the spec lies in, and names the submission by what it would do, so that
submitting the same thing twice follows the first instead of running it again.
"""

import asyncio
import hashlib
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.job_submission import JobStatus, JobSubmissionClient

from fisa_platform import git_commit
from fisa_platform.spec import SpecError, load_job

RESOURCES = ("num_cpus", "num_gpus", "memory", "resources", "label_selector")


def submit(
    *, entrypoint: tuple[str, ...], address: str | None = None, no_wait: bool = False, **given: Any
) -> None:
    """Submit the spec that the command names and exit; return when it names none, so that Ray goes on.

    `ray job submit` calls this with all of its own options, which override what is filled in here.
    """
    words = spec_and_options(entrypoint)
    if words is None:
        return
    spec, options = Path(words[0]).resolve(), words[1:]
    root = next((folder for folder in spec.parents if (folder / "platform" / "__main__.py").is_file()), None)
    try:
        job = load_job(spec, overrides_in(options))
    except SpecError as error:
        typer.echo("\n".join(f"error: {sentence}" for sentence in error.mistakes), err=True)
        raise SystemExit(2) from error
    if root is None:
        typer.echo(f"error: {spec}: lies in no checkout of the platform; move it into one", err=True)
        raise SystemExit(2)
    command = shlex.join(["python", "platform", str(spec.relative_to(root)), *options])
    runtime_env = parse_runtime_env_args(
        given.get("runtime_env"), given.get("runtime_env_json"), given.get("working_dir")
    )
    runtime_env.setdefault("working_dir", str(root))
    facts = {
        "spec": str(spec.relative_to(root)),
        "stage": job.stage_name,
        "git_commit": git_commit() or "unknown",
    }
    submission: dict[str, Any] = {
        "entrypoint": command,
        "runtime_env": runtime_env,
        "metadata": {**facts, **(given.get("metadata_json") or {})},
        **{f"entrypoint_{name}": given.get(f"entrypoint_{name}") for name in RESOURCES},
    }
    client = JobSubmissionClient(address, create_cluster_if_needed=True)
    digest = hashlib.sha256(json.dumps([command, spec.read_text(), code_digest(root)]).encode()).hexdigest()
    name = given.get("submission_id") or f"{job.stage_name}-{spec.stem}-{digest[:12]}"
    submission_id = _submit_once(client, name, submission)
    typer.echo(f"submission: {submission_id}")
    raise SystemExit(0 if no_wait else asyncio.run(_follow(client, submission_id)))


def spec_and_options(entrypoint: Sequence[str]) -> list[str] | None:
    """The spec on a command line and what follows it; None when the command is something else."""
    for prefix in (("python", "platform", "run"), ("python", "platform"), ("fisa", "run"), ()):
        rest = list(entrypoint[len(prefix) :])
        if tuple(entrypoint[: len(prefix)]) == prefix and rest:
            is_spec = rest[0].endswith((".yaml", ".yml")) and Path(rest[0]).is_file()
            return rest if is_spec else None
    return None


def overrides_in(options: Sequence[str]) -> list[str]:
    """The values of `--set` among a command's options."""
    joined = [option.removeprefix("--set=") for option in options if option.startswith("--set=")]
    return joined + [value for flag, value in itertools.pairwise(options) if flag == "--set"]


def code_digest(root: Path) -> str:
    """Digest of both packages' code."""
    digest = hashlib.sha256()
    for package in (root / "fisa_model", root / "platform"):
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _submit_once(client: JobSubmissionClient, name: str, submission: dict[str, Any]) -> str:
    """Submit under `name`, follow the submission that has it, or count on after one that failed."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    for attempt in itertools.count(1):
        submission_id = name if attempt == 1 else f"{name}-{attempt}"
        status = known.get(submission_id)
        if status is None:
            return client.submit_job(submission_id=submission_id, **submission)
        if status not in (JobStatus.FAILED, JobStatus.STOPPED):
            typer.echo(f"already submitted ({status.value.lower()}); --submission-id NAME submits it again")
            return submission_id
    raise AssertionError("unreachable")


async def _follow(client: JobSubmissionClient, submission_id: str) -> int:
    async for lines in client.tail_job_logs(submission_id):
        typer.echo(lines, nl=False)
    status = client.get_job_status(submission_id)
    typer.echo(f"job {submission_id!r} {status.value.lower()}")
    return 0 if status == JobStatus.SUCCEEDED else 1
