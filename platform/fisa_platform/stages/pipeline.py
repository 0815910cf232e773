"""Several stages in one run, in the order they are written, in one Ray session."""

from dataclasses import dataclass

from fisa_platform import runner
from fisa_platform.compute import Compute
from fisa_platform.job import Job, StageContext, StageResult
from fisa_platform.text_table import text_table


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """The steps of a pipeline."""

    output_uri: str
    """Folder of the whole run; `${output_uri}` in a step's text stands for it."""

    steps: dict[str, Job]
    """Name of each step, and its stage, config and compute."""

    at_once: int = 1
    """Steps that run at the same time, as long as none reads what another writes; the cluster needs room."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError(
                "steps must name at least one step, got none; add one as 'name: {stage: ..., config: ...}'"
            )
        if self.at_once < 1:
            raise ValueError(f"at_once must be at least 1, got {self.at_once}")
        writers: dict[str, str] = {}
        readers: dict[str, str] = {}
        for name, job in self.steps.items():
            readers.update(dict.fromkeys(job.input_uris().values(), name))
            output_uri = job.output_uri
            if output_uri is None:
                continue
            if output_uri in writers:
                raise ValueError(
                    f"steps {writers[output_uri]!r} and {name!r} both write {output_uri}; "
                    "give each step an output_uri of its own"
                )
            if output_uri in readers:
                raise ValueError(
                    f"steps run as written, but {readers[output_uri]!r} reads {output_uri}, "
                    f"which {name!r} writes later; move {name!r} up"
                )
            writers[output_uri] = name

    @property
    def jobs(self) -> dict[str, Job]:
        """Every job by name, in order."""
        return self.steps


def run(config: PipelineConfig, compute: Compute, context: StageContext) -> StageResult:
    """Run every step that is not up to date, then say what took how long and where it is."""
    outcomes = runner.run_jobs(config.steps, context.progress, at_once=config.at_once)
    messages = [_titled(outcome.name, outcome.message) for outcome in outcomes if outcome.message]
    return StageResult(message="\n\n".join([*messages, summary(outcomes)]))


def _titled(name: str, message: str) -> str:
    return f"{name}:\n{message}" if "\n" in message else f"{name}: {message}"


def summary(outcomes: list[runner.Outcome]) -> str:
    """Seconds and place of every step, as lines of text."""
    rows = [("step", "seconds", "output")]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.ran else "up to date"
        rows.append((outcome.name, seconds, outcome.version.uri if outcome.version else "-"))
    lines = text_table(rows)
    if not any(outcome.ran for outcome in outcomes):
        lines.append("everything is up to date")
    return "\n".join(lines)
