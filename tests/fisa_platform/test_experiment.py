"""A study: its cells, their places, what it refuses, and its table."""

import json
from pathlib import Path

import pytest

from fisa_platform.runner import run_job
from fisa_platform.spec import SpecError, jobs_of, load_job
from fisa_platform.stages.experiment import markdown_table, slug, write_results

SPEC = Path(__file__).resolve().parents[2] / "jobs" / "toy_ablations.yaml"
LORA = ["model.trained=lora", "model.query_projection=shared", "model.lora_rank=4"]
ARMS = "config.arms={A: [], 'LoRA, 4': [" + ", ".join(f"train.config.{text}" for text in LORA) + "]}"


def test_every_arm_and_seed_has_a_cell_of_its_own() -> None:
    jobs = jobs_of(load_job(SPEC, ["config.output_uri=/out", ARMS, "config.seeds=[1, 2]"]))
    cells = [name for name in jobs if name.startswith(("a-", "lora"))]
    assert cells == [
        f"{arm}-{seed}-{step}" for seed in (1, 2) for arm in ("a", "lora_4") for step in ("train", "evaluate")
    ]
    train, evaluate = jobs["lora_4-2-train"], jobs["lora_4-2-evaluate"]
    assert (train.config.seed, train.config.model.trained, train.config.model.lora_rank) == (2, "lora", 4)
    assert train.config.images_uri == "/out/train/images"
    assert train.output_uri == evaluate.config.classifier.weights_uri == "/out/cells/lora_4-2/weights"
    assert jobs["a-1-train"].config.model.trained == "simo"
    outputs = [job.output_uri for job in jobs.values()]
    assert len(set(outputs)) == len(outputs)


def test_a_scaling_study_has_a_cell_for_every_value() -> None:
    axis = "config.axis={setting: train.config.data_fraction, values: [0.00001, 1]}"
    config = load_job(SPEC, ["config.output_uri=/out", ARMS, "config.seeds=[3]", axis]).config
    assert [cell.row for cell in config.cells] == ["A, 0.00001", "A, 1", "LoRA, 4, 0.00001", "LoRA, 4, 1"]
    few, lora = config.jobs["a-0.00001-3-train"], config.jobs["lora_4-1-3-train"]
    assert (few.config.data_fraction, few.config.model.trained) == (0.00001, "simo")
    assert (lora.config.data_fraction, lora.config.model.trained) == (1, "lora")
    assert few.output_uri == "/out/cells/a-0.00001-3/weights"
    assert config.axis.words == "data_fraction"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("config.axis={setting: train.config.iterations, values: [10]}", "two or more that differ, got .10."),
        ("config.axis={setting: train.config.iterations, values: [5, 5]}", "two or more that differ"),
        ("config.axis={setting: train.config.iterations, values: [1, 0]}", "iterations must be at least 1"),
        ("config.axis={setting: train.config.iters, values: [1, 2]}", "did you mean 'iterations'"),
        ("config.axis={setting: iterations, values: [1, 2]}", "write it like train.config.iterations"),
        (
            "config.axis={setting: train.iterations, values: [1, 2]}",
            "axis.setting is 'train.iterations'",
        ),
        ("config.axis={setting: train.config.seed, values: [1, 2]}", "of 'train' other than its seed"),
        ("config.axis={setting: evaluate.config.batch_size, values: [1, 2]}", "must be a number of 'train'"),
        (
            "config.axis={setting: train.config.iterations, values: [1, 2], published: {paper: []}}",
            "published has no numbers for 'paper'; give pairs",
        ),
        (
            "config.arms={A: [train.compute.workers.max=2]}",
            "which is no config of a step of cell; begin",
        ),
        ("config.arms={baseline (frozen): []}", "'baseline .frozen.' is the name of a step, too"),
        ("config.arms={A: [train.config.model.traned=lora]}", "did you mean 'trained'"),
        ("config.arms={A: [train.config.seed]}", "write it like config.seed=1"),
        ("config.arms={A: [training.config.seed=1]}", "begin with one of train.config., evaluate.config."),
        ("config.arms={A b: [], a-B: []}", "arms must all differ"),
        ("config.seeds=[1, 1]", "seeds must all differ"),
        ("config.seeds=[]", "must each name at least one"),
        ("config.cell.evaluate=null", "config.cell.evaluate"),
    ],
)
def test_what_could_not_run_is_refused_at_once(setting: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        load_job(SPEC, [setting])


def test_the_table_shows_means_and_half_the_range() -> None:
    def scores(pq: float) -> dict[str, dict[str, float]]:
        return {subset: {"PQ": pq, "mIoU": 1.0} for subset in ("all", "seen", "unseen")}

    table = markdown_table({"frozen": [scores(2.0)], "FISA": [scores(3.0), scores(6.0)]})
    assert "| frozen | 2.0 | 2.0 | 2.0 | 1.0 | 1.0 | 1.0 | 1 |" in table
    assert "| FISA | 4.5 ± 1.5 | 4.5 ± 1.5 | 4.5 ± 1.5 | 1.0 ± 0.0 | 1.0 ± 0.0 | 1.0 ± 0.0 | 2 |" in table


def test_an_arm_that_sets_the_axis_is_refused() -> None:
    settings = [
        "config.arms={A: [train.config.iterations=5]}",
        "config.axis={setting: train.config.iterations, values: [1, 2]}",
    ]
    with pytest.raises(SpecError, match=r"'A' sets train\.config\.iterations, which is the axis"):
        load_job(SPEC, settings)


def test_a_step_that_is_called_as_a_cells_job_is_refused() -> None:
    step = "config.steps.a-1-train={stage: shard, config: {toyworld: {scenes: 1, names: all}, output_uri: x}}"
    with pytest.raises(SpecError, match="one is called as a job of a cell is"):
        load_job(SPEC, [ARMS, "config.seeds=[1]", step])


def test_table_and_curves_are_written(tmp_path: Path) -> None:
    axis = "{setting: train.config.data_fraction, values: [0.1, 1], label: 'part, in $ ($_)'}"
    config = load_job(
        SPEC,
        [f"config.output_uri={tmp_path}", "config.arms={A: []}", "config.seeds=[1]", f"config.axis={axis}"],
    ).config
    rows = {cell.row: [{"all": {"PQ": 1.0}, "arm": "A", "value": cell.value}] for cell in config.cells}
    message = write_results(config, rows)
    assert "| arm, part, in $ ($_) | PQ all | seeds |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    assert "part, in $ ($_)" in (tmp_path / "curves.svg").read_text()
    assert message.endswith(f"table: {tmp_path}/table.md\ncurves: {tmp_path}/curves.svg")


def test_the_table_leaves_out_what_not_every_row_has() -> None:
    both, one = {"all": {"PQ": 1.0}, "seen": {"PQ": 2.0}}, {"all": {"PQ": 3.0}}
    assert markdown_table({"a": [both], "b": [one]}, "arm").splitlines() == [
        "| arm | PQ all | seeds |",
        "|---|---|---|",
        "| a | 1.0 | 1 |",
        "| b | 3.0 | 1 |",
    ]


def test_names_become_parts_of_paths() -> None:
    assert slug("FISA (SEVE + SIMO)") == "fisa_seve_simo"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(900)
def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    small = [
        f"config.output_uri={tmp_path}",
        "config.steps.shard-train.config.toyworld.scenes=16",
        "config.steps.shard-val.config.toyworld.scenes=12",
        "config.cell.train.config.iterations=2",
        "config.cell.train.config.batches.size=2",
        ARMS,
    ]
    first, lines = load_job(SPEC, [*small, "config.seeds=[1]"]), []
    run_job("toy_ablations", first, lines.append)
    again: list[str] = []
    run_job("toy_ablations", load_job(SPEC, [*small, "config.seeds=[1, 2]"]), again.append)
    assert [line.split(": ")[0].split("] ")[1] for line in again if "started" in line] == [
        f"{arm}-2-{step}" for arm in ("a", "lora_4") for step in ("train", "evaluate")
    ]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {name: [cell.get("seed") for cell in cells] for name, cells in rows.items()} == {
        "baseline (frozen)": [None],
        "A": [1, 2],
        "LoRA, 4": [1, 2],
    }
    assert "| LoRA, 4 |" in (tmp_path / "table.md").read_text()
