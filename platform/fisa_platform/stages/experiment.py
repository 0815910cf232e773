"""Stage `experiment`: the same jobs for every arm and seed of a study, and one table of their scores.

Every cell of the study writes versions of its own, so that a study that was stopped goes on with the cells
that are missing, and one more arm costs only that arm.
"""

import dataclasses
import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fisa_platform import runner, storage
from fisa_platform.compute import Compute
from fisa_platform.decode import DecodeError, decode
from fisa_platform.job import Job, StageContext, StageResult, map_uris, to_json
from fisa_platform.overrides import apply_overrides
from fisa_platform.runner import Outcome

TABLE_NAME, JSON_NAME = "table.md", "table.json"
COLUMNS = (("all", "PQ"), ("seen", "PQ"), ("unseen", "PQ"), ("seen", "mIoU"), ("unseen", "mIoU"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig:
    """A study: what is prepared once, and what is done for every arm and seed."""

    output_uri: str
    """Folder of the whole study; `${output_uri}` in a step's text stands for it."""

    steps: dict[str, Job]
    """What all cells share, in order; each `evaluate` among them is a row of the table without seeds."""

    cell: dict[str, Job]
    """What every cell does: a `train` and an `evaluate`. `${output_uri}/cell/` is the folder of each."""

    arms: dict[str, list[str]]
    """Name of each arm, and what it sets, such as `train.config.model.trained=seve_only`."""

    seeds: list[int]
    """Seeds of training; every arm runs once with each."""

    def __post_init__(self) -> None:
        stages = [job.stage_name for job in self.cell.values()]
        if stages.count("train") != 1 or stages.count("evaluate") != 1:
            raise ValueError(f"cell must have one step 'train' and one 'evaluate' stage, got {stages}")
        if not self.arms or not self.seeds:
            raise ValueError("arms and seeds must each name at least one; seeds: [42] is one run of each arm")
        for name, values in (("arms", [slug(arm) for arm in self.arms]), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must all differ, got {values}; rename or remove one")
        _ = self.jobs  # an arm that cannot be set is refused before anything runs

    @property
    def jobs(self) -> dict[str, Job]:
        """Every job of the study by name, in order: one seed of all arms, then the next."""
        jobs = dict(self.steps)
        for seed in self.seeds:
            for arm in self.arms:
                for step in self.cell:
                    jobs[_name(arm, seed, step)] = self._cell_job(arm, seed, step)
        return jobs

    def _cell_job(self, arm: str, seed: int, step: str) -> Job:
        job = self.cell[step]
        settings = [text.removeprefix(f"{step}.") for text in self.arms[arm] if text.startswith(f"{step}.")]
        strangers = [text for text in self.arms[arm] if text.partition(".")[0] not in self.cell]
        if strangers:
            raise ValueError(
                f"arms: {arm!r} sets {strangers[0]!r}, which is no step of cell; "
                f"begin with one of {', '.join(self.cell)}"
            )
        if job.stage_name == "train":
            settings.append(f"config.seed={seed}")
        own, shared = f"{self.output_uri}/cells/{slug(arm)}-{seed}/", f"{self.output_uri}/cell/"
        try:
            plain: Any = apply_overrides({"config": to_json(job.config)}, settings, f"arms: {arm!r}")
            config: Any = decode(job.stage.config, plain["config"], "config")
        except DecodeError as error:
            raise ValueError(f"arms: {arm!r}: {error}") from error
        located = map_uris(config, lambda _, uri: uri.replace(shared, own, 1))
        return dataclasses.replace(job, config=located)


def run(config: ExperimentConfig, compute: Compute, context: StageContext) -> StageResult:
    """Run every job that is not up to date, then write the table of scores beside the cells."""
    outcomes = {outcome.name: outcome for outcome in runner.run_jobs(config.jobs, context.progress)}
    rows = scores_by_row(config, outcomes)
    table = markdown_table(rows)
    storage.write_bytes(storage.join(config.output_uri, TABLE_NAME), table.encode())
    storage.write_bytes(storage.join(config.output_uri, JSON_NAME), json.dumps(rows, indent=2).encode())
    return StageResult(message=f"{table}\ntable: {storage.join(config.output_uri, TABLE_NAME)}")


def scores_by_row(
    config: ExperimentConfig, outcomes: Mapping[str, Outcome]
) -> dict[str, list[dict[str, Any]]]:
    """Name of each row and the scores of each of its seeds, by subset; with the seconds of training."""
    rows = {
        name: [_scores(outcomes[name])] for name, job in config.steps.items() if job.stage_name == "evaluate"
    }
    train, evaluate = (
        next(step for step, job in config.cell.items() if job.stage_name == stage)
        for stage in ("train", "evaluate")
    )
    for arm in config.arms:
        rows[arm] = []
        for seed in config.seeds:
            trained = outcomes[_name(arm, seed, train)].version
            assert trained is not None
            scores = _scores(outcomes[_name(arm, seed, evaluate)])
            rows[arm].append({**scores, "seed": seed, "train_seconds": trained.manifest.seconds})
    return rows


def markdown_table(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """Mean over seeds and, where there are several, half of the range between the least and the greatest."""
    head = ["", *(f"{metric} {subset}" for subset, metric in COLUMNS), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, cells in rows.items():
        values = [[cell[subset][metric] for cell in cells] for subset, metric in COLUMNS]
        lines.append("| " + " | ".join([name, *map(_mean_and_range, values), str(len(cells))]) + " |")
    return "\n".join(lines) + "\n"


def slug(arm: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^a-z0-9]+", "_", arm.lower()).strip("_")


def _mean_and_range(values: list[float]) -> str:
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _scores(outcome: Outcome) -> dict[str, Any]:
    assert outcome.version is not None
    scores: dict[str, Any] = outcome.version.manifest.extra["scores"]
    return dict(scores)


def _name(arm: str, seed: int, step: str) -> str:
    return f"{slug(arm)}-{seed}-{step}"
