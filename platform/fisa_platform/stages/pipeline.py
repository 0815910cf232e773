"""Several stages in one run, in the order they are written, in one Ray session."""

from dataclasses import dataclass

from fisa_platform import runner
from fisa_platform.compute import Compute
from fisa_platform.job import Job, StageContext, StageResult


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """The steps of a pipeline."""

    output_uri: str
    """Folder of the whole run; `${output_uri}` in a step's text stands for it."""

    steps: dict[str, Job]
    """Name of each step, and its stage, config and compute."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError(
                "steps must name at least one step, got none; add one as 'name: {stage: ..., config: ...}'"
            )
        owners: dict[str, str] = {}
        for name, job in self.steps.items():
            if job.output_uri is None:
                continue
            if job.output_uri in owners:
                raise ValueError(
                    f"steps {owners[job.output_uri]!r} and {name!r} both write {job.output_uri}; "
                    "give each step an output_uri of its own"
                )
            owners[job.output_uri] = name


def run(config: PipelineConfig, compute: Compute, context: StageContext) -> StageResult:
    """Run every step that is not up to date, then say what took how long and where it is."""
    outcomes = runner.run_jobs(config.steps, context.progress)
    messages = [outcome.message for outcome in outcomes if outcome.message]
    return StageResult(message="\n\n".join([*messages, summary(outcomes)]))


def summary(outcomes: list[runner.Outcome]) -> str:
    """Seconds and place of every step, as lines of text."""
    rows = [("step", "seconds", "output")]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.ran else "up to date"
        rows.append((outcome.name, seconds, outcome.version.uri if outcome.version else "-"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {seconds:>{widths[1]}}  {output}" for name, seconds, output in rows]
    if not any(outcome.ran for outcome in outcomes):
        lines.append("everything is up to date")
    return "\n".join(lines)
