"""Stage `experiment`: the same jobs for every arm and seed of a study, and one table of their scores.

With an axis it is a scaling study: every arm and seed runs with every value on it, and curves are drawn, too.
Every cell of the study writes versions of its own, so that a study that was stopped goes on with the cells
that are missing, and one more arm costs only that arm.
"""

import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from fisa_model.config import check_choices
from fisa_platform import runner, storage
from fisa_platform.compute import Compute
from fisa_platform.decode import DecodeError, decode
from fisa_platform.job import Job, StageContext, StageResult, map_uris, to_json
from fisa_platform.overrides import apply_overrides
from fisa_platform.runner import Outcome

TABLE_NAME, JSON_NAME, CURVES_NAME = "table.md", "table.json", "curves.svg"
COLUMNS = tuple((subset, metric) for metric in ("PQ", "mIoU") for subset in ("all", "seen", "unseen"))


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisConfig:
    """What a scaling study varies."""

    setting: str
    """A number of `train` in the cell, such as `train.config.data_fraction` or `train.config.iterations`."""

    values: list[int | float]
    """Every arm and seed runs with each of them, anew and not as a part of a longer run."""

    label: str | None = None
    """Words for the axis; none is the setting's name."""

    metric: Literal["PQ", "mIoU"] = "PQ"
    """What is drawn over it."""

    published: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Marks beside the curves: by name, pairs of a value and the metric over all classes."""

    def __post_init__(self) -> None:
        check_choices(self)
        if len(set(self.values)) < max(2, len(self.values)):
            raise ValueError(f"values must be two or more that differ, got {self.values}")
        if empty := [name for name, pairs in self.published.items() if not pairs]:
            raise ValueError(f"published has no numbers for {empty[0]!r}; give pairs like [[1, 27.5]]")

    @property
    def words(self) -> str:
        """What the axis is called."""
        return self.label or self.setting.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study."""

    arm: str
    value: float | None
    """On the axis, if the study has one."""

    seed: int

    @property
    def row(self) -> str:
        """The row of the table that it is in."""
        return self.arm if self.value is None else f"{self.arm}, {_plain(self.value)}"

    @property
    def slug(self) -> str:
        """Its name as part of a path."""
        value = "" if self.value is None else f"-{_plain(self.value)}"
        return f"{slug(self.arm)}{value}-{self.seed}"


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

    at_once: int = 1
    """Jobs that run at the same time, as long as none reads what another writes; the cluster needs room."""

    axis: AxisConfig | None = None
    """What is varied in steps, for a scaling study; every arm and seed then runs once with each value."""

    def __post_init__(self) -> None:
        stages = [job.stage_name for job in self.cell.values()]
        if stages.count("train") != 1 or stages.count("evaluate") != 1:
            raise ValueError(f"cell must have one step 'train' and one 'evaluate' stage, got {stages}")
        if not self.arms or not self.seeds:
            raise ValueError("arms and seeds must each name at least one; seeds: [42] is one run of each arm")
        if self.at_once < 1:
            raise ValueError(f"at_once must be at least 1, got {self.at_once}")
        for name, values in (("arms", list(self.arms)), ("seeds", self.seeds)):
            # Arms in letters and digits, which are the names of their folders.
            if len({slug(str(value)) for value in values}) < len(values):
                raise ValueError(f"{name} must all differ, got {values}; rename or remove one")
        if shared := [cell.row for cell in self.cells if cell.row in self.steps]:
            raise ValueError(f"arms: {shared[0]!r} is the name of a step, too; rename one of them")
        self._check_axis()
        # An arm that cannot be set is refused here, before anything runs.
        if len(self.jobs) < len(self.steps) + len(self.cells) * len(self.cell):
            raise ValueError("steps: one is called as a job of a cell is, like 'arm-42-train'; rename it")

    def _check_axis(self) -> None:
        if self.axis is None:
            return
        setting = self.axis.setting
        train = self.step_of("train")
        if not setting.startswith(f"{train}.config.") or setting == f"{train}.config.seed":
            raise ValueError(
                f"axis.setting is {setting!r}, but must be a number of {train!r} other than its seed; "
                f"write it like {train}.config.iterations"
            )
        for value in self.axis.values:
            _set(self.cell[train], [_setting_of(self.axis, value).removeprefix(f"{train}.")], "axis.setting")
        for arm, texts in self.arms.items():
            if any(text.partition("=")[0].strip() == setting for text in texts):
                raise ValueError(f"arms: {arm!r} sets {setting}, which is the axis; leave it to one of them")

    def step_of(self, stage_name: str) -> str:
        """The step of a cell that is of a stage, `train` or `evaluate`."""
        return next(step for step, job in self.cell.items() if job.stage_name == stage_name)

    @property
    def jobs(self) -> dict[str, Job]:
        """Every job of the study by name, in order: one seed of all arms, then the next."""
        jobs = dict(self.steps)
        for cell in self.cells:
            for step in self.cell:
                jobs[f"{cell.slug}-{step}"] = self._cell_job(cell, step)
        return jobs

    @property
    def cells(self) -> list[Cell]:
        """Every run of the study: one seed of all arms and values, then the next."""
        values = [None] if self.axis is None else self.axis.values
        return [
            Cell(arm, value, seed) for seed, arm, value in itertools.product(self.seeds, self.arms, values)
        ]

    def _cell_job(self, cell: Cell, step: str) -> Job:
        job = self.cell[step]
        texts = list(self.arms[cell.arm])
        if self.axis is not None and cell.value is not None:
            texts.append(_setting_of(self.axis, cell.value))
        starts = tuple(f"{name}.config." for name in self.cell)
        origin = f"arms: {cell.row!r}"
        if strangers := [text for text in texts if not text.startswith(starts)]:
            raise ValueError(
                f"{origin} sets {strangers[0]!r}, which is no config of a step of cell; "
                f"begin with one of {', '.join(starts)}"
            )
        settings = [text.removeprefix(f"{step}.") for text in texts if text.startswith(f"{step}.")]
        if job.stage_name == "train":
            settings.append(f"config.seed={cell.seed}")
        own, shared = f"{self.output_uri}/cells/{cell.slug}/", f"{self.output_uri}/cell/"
        located = map_uris(_set(job, settings, origin), lambda _, uri: uri.replace(shared, own, 1))
        return dataclasses.replace(job, config=located)


def run(config: ExperimentConfig, compute: Compute, context: StageContext) -> StageResult:
    """Run every job that is not up to date, then write the table of scores, and curves, beside the cells."""
    found = runner.run_jobs(config.jobs, context.progress, at_once=config.at_once)
    outcomes = {outcome.name: outcome for outcome in found}
    return StageResult(message=write_results(config, scores_by_row(config, outcomes)))


def write_results(config: ExperimentConfig, rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """Write the table, as Markdown and JSON, and then the curves; returns what to say of them."""
    axis = config.axis
    table = markdown_table(rows, "" if axis is None else f"arm, {axis.words}")
    table_uri = storage.join(config.output_uri, TABLE_NAME)
    storage.write_bytes(table_uri, table.encode())
    storage.write_bytes(storage.join(config.output_uri, JSON_NAME), json.dumps(rows, indent=2).encode())
    if axis is None:
        return f"{table}\ntable: {table_uri}"
    from fisa_platform.curves import draw_curves

    curves_uri = storage.join(config.output_uri, CURVES_NAME)
    curves = draw_curves(rows, label=axis.words, metric=axis.metric, published=axis.published)
    storage.write_bytes(curves_uri, curves.encode())
    return f"{table}\ntable: {table_uri}\ncurves: {curves_uri}"


def scores_by_row(
    config: ExperimentConfig, outcomes: Mapping[str, Outcome]
) -> dict[str, list[dict[str, Any]]]:
    """Name of each row and the scores of each of its seeds, by subset; with the seconds of training."""
    rows = {
        name: [_scores(outcomes[name])] for name, job in config.steps.items() if job.stage_name == "evaluate"
    }
    train, evaluate = config.step_of("train"), config.step_of("evaluate")
    for cell in config.cells:
        trained = outcomes[f"{cell.slug}-{train}"].version
        assert trained is not None
        scores = _scores(outcomes[f"{cell.slug}-{evaluate}"])
        facts = {**dataclasses.asdict(cell), "train_seconds": trained.manifest.seconds}
        rows.setdefault(cell.row, []).append({**scores, **facts})
    return rows


def markdown_table(rows: Mapping[str, list[dict[str, Any]]], first: str = "") -> str:
    """Mean over seeds and, where there are several, half of the range between the least and the greatest.

    COLUMNS that a row has no scores for are left out; `first` is the heading of the names.
    """
    everywhere = [cell for cells in rows.values() for cell in cells]
    columns = [(s, metric) for s, metric in COLUMNS if all(metric in cell.get(s, {}) for cell in everywhere)]
    head = [first, *(f"{metric} {subset}" for subset, metric in columns), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, cells in rows.items():
        values = [[cell[subset][metric] for cell in cells] for subset, metric in columns]
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


def _set(job: Job, settings: Sequence[str], origin: str) -> Any:
    """The job's config with values set by texts like `config.iterations=100`."""
    try:
        plain: Any = apply_overrides({"config": to_json(job.config)}, settings, origin)
        return decode(job.stage.config, plain["config"], "config")
    except DecodeError as error:
        raise ValueError(f"{origin}: {error}") from error


def _setting_of(axis: AxisConfig, value: float) -> str:
    """What sets a value of the axis."""
    return f"{axis.setting}={_plain(value)}"


def _plain(value: float) -> str:
    """A number as YAML reads it; 1e-05 would be text."""
    return f"{Decimal(repr(value)):f}"
