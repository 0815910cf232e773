"""The command line, `fisa run | check | schema | status | inspect | gc | ...`; a spec alone means `run`."""

import json
import logging
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fisa_platform import manifest, storage
from fisa_platform.json_schema import spec_schema
from fisa_platform.runner import Plan, outline_jobs, plan_jobs, run_job
from fisa_platform.spec import OF_JOBS, SpecError, jobs_of, load_job, step_stages
from fisa_platform.stages import STAGES
from fisa_platform.text_table import text_table

COMMANDS = ("run", "check", "schema", "status", "inspect", "gc", "convert-mask2former")
OUR_PACKAGES = {"fisa_platform", "fisa_model"}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Jobs of the FISA platform.",
)
SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="A job spec, such as jobs/quickstart.yaml.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set one value, such as config.iterations=100."),
]


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake in a spec exits with 2, a failure that is understood with 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        arguments = ["run", *arguments]
    _configure_logging()
    try:
        app(arguments, prog_name="fisa")
    except SpecError as error:
        _complain(error.mistakes)
        sys.exit(2)
    except (OSError, ValueError) as error:
        if not raised_by_us(error):
            raise
        _complain([": ".join([*reversed(getattr(error, "__notes__", [])), _sentence(error)])])
        sys.exit(1)


@app.command()
def run(spec: SpecArgument, overrides: SetOption = None) -> None:
    """Run a job; what is up to date is skipped."""
    job = load_job(spec, overrides or [])
    label = "" if job.stage_name in OF_JOBS else f"{job.stage_name}: "
    try:
        outcome = run_job(spec.stem, job, lambda line: _say(label + line))
    except KeyboardInterrupt:
        _say("interrupted: what was committed is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    if outcome.message:
        _say("\n" + outcome.message)


@app.command()
def check(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Job specs.")],
    overrides: SetOption = None,
    *,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check the specs alone; look at no folder and no bucket.")
    ] = False,
) -> None:
    """Say what jobs would read, write and need, and refuse what could not run; nothing is run."""
    plans_of = outline_jobs if offline else plan_jobs
    mistakes: list[str] = []
    for spec in specs:
        try:
            job = load_job(spec, overrides or [])
        except SpecError as error:
            mistakes += error.mistakes
            continue
        jobs, is_many = jobs_of(job), job.stage_name in OF_JOBS
        _say(f"{spec}: " + (f"stage {job.stage_name} of {len(jobs)} jobs" if is_many else "one stage"))
        for number, plan in enumerate(plans_of(jobs), start=1):
            _say(_plan_text(number, plan))
            place = f"{spec}: "
            if is_many:  # a cell of an experiment stands nowhere in the spec under its own name
                place += f"config.steps.{plan.name}." if plan.name in job.config.steps else f"{plan.name}: "
            mistakes += [place + problem for problem in plan.problems]
    if mistakes:
        raise SpecError(mistakes)


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option("--output", help="A file to write instead of the terminal.")
    ] = None,
) -> None:
    """Print the JSON Schema of all job specs, for editors."""
    text = json.dumps(spec_schema(STAGES, step_stages()), indent=2)
    if output is None:
        typer.echo(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
        _say(f"wrote {output}")


@app.command()
def status(
    uris: Annotated[
        list[str] | None, typer.Argument(metavar="[URI...]", help="Folders; by default runs/.")
    ] = None,
) -> None:
    """List the versions at or below output folders; '*' marks the latest of each."""
    rows: list[tuple[str, ...]] = [("output", "version", "stage", "created", "rows", "seconds")]
    for uri in uris or ["runs"]:
        datasets = manifest.find_datasets(storage.make_absolute(uri))
        if not datasets:
            _say(f"{uri}: no versions there")
        for dataset in datasets:
            rows += _version_rows(dataset)
    if len(rows) > 1:
        _say("\n".join(text_table(rows)))


@app.command()
def inspect(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="A version, or the folder of a stage's versions.")
    ],
    *,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Draw the first N images.")] = 0,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where the drawing goes.")] = Path(
        "contact_sheet.png"
    ),
) -> None:
    """Say what a version holds and where it comes from; with --show, draw its images with their masks."""
    from fisa_platform import inspection
    from fisa_platform.rendering import encode_picture

    version = manifest.open_version(storage.make_absolute(uri))
    if show and not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output}: there is no such folder; make it, or choose another --output")
    if show and output.suffix.lower() != ".png":
        raise ValueError(f"{output}: the drawing is a PNG; give --output a name that ends in .png")
    _say(inspection.describe(version))
    if show:
        output.write_bytes(encode_picture(inspection.show(version, show)))
        _say(f"drawn     {output}")


@app.command()
def gc(
    uris: Annotated[
        list[str] | None, typer.Argument(metavar="[URI...]", help="Folders; by default runs/.")
    ] = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Delete what is listed.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also what runs that did not end would go on with.")
    ] = False,
) -> None:
    """List files that no manifest names; not while the jobs that write them run."""
    from fisa_platform.garbage import find_garbage

    rows: list[tuple[str, ...]] = [("version", "files", "MB", "left by")]
    for uri in uris or ["runs"]:
        for garbage in find_garbage(storage.make_absolute(uri)):
            if garbage.unfinished and not unfinished:
                why = "a run that did not end; kept without --unfinished"
            else:
                why = "a run that did not end" if garbage.unfinished else "beside the manifest"
                if remove:
                    garbage.remove()
            rows.append((garbage.version_uri, str(len(garbage.files)), f"{garbage.bytes / 1e6:.1f}", why))
    _say("\n".join(text_table(rows)) if len(rows) > 1 else "nothing is left over")
    if len(rows) > 1:
        _say(
            "deleted, but for what is said to be kept" if remove else "nothing was deleted; --remove does it"
        )


@app.command("convert-mask2former")
def convert_mask2former(
    source: Annotated[Path, typer.Argument(metavar="SOURCE.pkl", help="A file of Mask2Former's model zoo.")],
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="For `generator_weights`; made anew.")],
    *,
    any_checksum: Annotated[
        bool, typer.Option("--any-checksum", help="Accept a file that does not match the digits in its name.")
    ] = False,
) -> None:
    """Convert published weights of Mask2Former for `generator: mask2former`."""
    from fisa_model.mask_generators.mask2former_checkpoint import convert_checkpoint

    _say(f"wrote {output}: {convert_checkpoint(source, output, any_checksum=any_checksum)}")


def _version_rows(dataset: str) -> list[tuple[str, ...]]:
    latest = manifest.find_version(dataset)
    rows: list[tuple[str, ...]] = []
    for version in manifest.list_versions(dataset):
        mark = "*" if latest is not None and latest.uri == version.uri else ""
        found = version.manifest
        count = "-" if found.rows is None else str(found.rows)
        name = f"{version.fingerprint}{mark}"
        rows.append((dataset, name, found.stage, found.created_at, count, f"{found.seconds:.1f}"))
    return rows


def _plan_text(number: int, plan: Plan) -> str:
    workers, compute = plan.job.compute.workers, plan.job.compute
    count = f"{workers.min} to {workers.max}" if workers.min != workers.max else str(workers.max)
    memory = f", {compute.memory_gb:g} GiB" if compute.memory_gb is not None else ""
    lines = [f"  {number}. {plan.name} (stage {plan.job.stage_name}): {plan.state}"]
    lines += [f"       reads   {name}: {what}" for name, what in plan.reads.items()]
    if plan.job.output_uri is not None:
        lines.append(f"       writes  {plan.job.output_uri}")
    each = f"{compute.cpus_per_worker:g} CPUs, {compute.gpus_per_worker:g} GPUs{memory}"
    lines.append(f"       needs   {count} workers, each {each}")
    return "\n".join(lines)


def raised_by_us(error: BaseException) -> bool:
    """True when our own code raised it, here or in a Ray worker, and so meant it for the person to read."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    # The text of an exception from a Ray worker is the worker's traceback.
    files += re.findall(r'File "([^"]+)", line', str(error))
    return bool(files) and bool(OUR_PACKAGES.intersection(Path(files[-1]).parts))


def _sentence(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, BaseException) else error)
    # What Ray Data adds to any error of a worker, for those who wrote the worker.
    return text.partition("\nFailed to apply UDF transform")[0]


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)


def _complain(sentences: list[str]) -> None:
    for sentence in sentences:
        typer.echo(f"error: {sentence}", err=True)


def _configure_logging() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in OUR_PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
