import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fisa_platform import manifest, storage
from fisa_platform.compute import Compute
from fisa_platform.job import Job, Stage, StageContext, StageResult
from fisa_platform.runner import plan_jobs, run_jobs
from fisa_platform.stages import pipeline
from fisa_platform.tables import write_parquet


@dataclass(frozen=True, kw_only=True, slots=True)
class AddConfig:
    """Writes the sum of `number` and the numbers that its inputs hold."""

    output_uri: str
    number: int
    input_uris: tuple[str, ...] = ()


def run_add(config: AddConfig, compute: Compute, context: StageContext) -> StageResult:
    total = config.number
    for uri in config.input_uris:
        total += int(storage.read_json(manifest.open_version(uri).file("sum.json")))
    context.progress("adding")
    storage.write_json(storage.join(context.output.uri, "sum.json"), total)
    return StageResult(rows=1, extra={"sum": total}, message=f"the sum is {total}")


ADD = Stage(AddConfig, run_add, uses_ray=False)


def add(output_uri: str, number: int, *inputs: str) -> Job:
    config = AddConfig(output_uri=output_uri, number=number, input_uris=inputs)
    return Job(stage_name="add", stage=ADD, config=config, compute=Compute())


def steps(folder: Path, *, first: int = 1, second: int = 10, last: int = 100) -> dict[str, Job]:
    """`last` reads both others; `first` and `second` read nothing."""
    a, b, c = (str(folder / name) for name in "abc")
    return {"first": add(a, first), "second": add(b, second), "last": add(c, last, a, b)}


def ran(jobs: dict[str, Job]) -> list[str]:
    return [outcome.name for outcome in run_jobs(jobs, lambda _: None) if outcome.ran]


def test_steps_run_in_order_and_feed_each_other(tmp_path: Path) -> None:
    lines: list[str] = []
    outcomes = run_jobs(steps(tmp_path), lines.append)
    assert outcomes[-1].version is not None
    assert outcomes[-1].version.manifest.extra["sum"] == 111
    assert lines[0].startswith("[1/3] first: started (version ")
    assert "[3/3] last: adding" in lines
    assert lines[-1].startswith("[3/3] last: finished in ")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeetConfig:
    output_uri: str


def meeting(parties: int, folder: Path, *names: str, timeout: float = 20) -> dict[str, Job]:
    """Jobs that end only when so many of them run at the same time."""
    barrier = threading.Barrier(parties, timeout=timeout)

    def run_meet(config: MeetConfig, compute: Compute, context: StageContext) -> StageResult:
        barrier.wait()
        storage.write_json(storage.join(context.output.uri, "sum.json"), 1)
        return StageResult(rows=1)

    stage = Stage(MeetConfig, run_meet, uses_ray=False)
    return {
        name: Job(
            stage_name="meet",
            stage=stage,
            config=MeetConfig(output_uri=str(folder / name)),
            compute=Compute(),
        )
        for name in names
    }


def test_jobs_that_do_not_wait_for_each_other_run_at_once(tmp_path: Path) -> None:
    jobs = meeting(2, tmp_path, "one", "two", "three", "four")
    outcomes = run_jobs(jobs, lambda _: None, at_once=2)
    assert [outcome.name for outcome in outcomes] == ["one", "two", "three", "four"]
    with pytest.raises(threading.BrokenBarrierError):
        run_jobs(meeting(3, tmp_path / "3", "one", "two", "three", timeout=1), lambda _: None, at_once=2)


def test_a_job_waits_for_what_it_reads(tmp_path: Path) -> None:
    """`last` may only begin when the two that meet are done, and reads what they wrote."""
    meet = meeting(2, tmp_path, "first", "second")
    last = add(str(tmp_path / "sum"), 100, str(tmp_path / "first"), str(tmp_path / "second"))
    after = add(str(tmp_path / "sum"), 1000, str(tmp_path / "first"))  # writes to the same place
    lines: list[str] = []
    outcomes = run_jobs({**meet, "last": last, "after": after}, lines.append, at_once=4)
    sums = [o.version.manifest.extra["sum"] for o in outcomes if o.version and o.name in ("last", "after")]
    assert sums == [102, 1001]
    begun = [line for line in lines if "started" in line]
    assert [line.split()[1] for line in begun[2:]] == ["last:", "after:"]
    assert lines.index(begun[3]) > max(n for n, line in enumerate(lines) if "last: finished" in line)


def test_after_a_failure_nothing_is_begun_and_what_runs_is_finished(tmp_path: Path) -> None:
    meet = meeting(2, tmp_path, "one")
    barrier = threading.Barrier(2, timeout=20)

    def run_slowly(config: MeetConfig, compute: Compute, context: StageContext) -> StageResult:
        barrier.wait()
        time.sleep(0.5)  # is still at it when the other fails
        storage.write_json(storage.join(context.output.uri, "sum.json"), 1)
        return StageResult(rows=1)

    def run_badly(config: MeetConfig, compute: Compute, context: StageContext) -> StageResult:
        barrier.wait()
        raise ValueError("no")

    def job(name: str, run: Callable[[MeetConfig, Compute, StageContext], StageResult]) -> Job:
        stage = Stage(MeetConfig, run, uses_ray=False)
        return dataclasses.replace(
            meet["one"], stage=stage, config=MeetConfig(output_uri=str(tmp_path / name))
        )

    jobs = {"bad": job("bad", run_badly), "slow": job("slow", run_slowly), "late": job("late", run_slowly)}
    with pytest.raises(ValueError, match="no") as raised:
        run_jobs(jobs, lambda _: None, at_once=2)
    assert raised.value.__notes__ == ["in 'bad'"]
    assert manifest.find_version(str(tmp_path / "slow")) is not None
    assert not (tmp_path / "late").exists()


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    assert ran(steps(tmp_path)) == ["first", "second", "last"]
    lines: list[str] = []
    outcomes = run_jobs(steps(tmp_path), lines.append)
    assert [line.split(" (")[0] for line in lines] == [
        "[1/3] first: up to date",
        "[2/3] second: up to date",
        "[3/3] last: up to date",
    ]
    assert [outcome.message for outcome in outcomes][-1] == "the sum is 111"


def test_only_what_changed_and_what_follows_runs_again(tmp_path: Path) -> None:
    ran(steps(tmp_path))
    assert ran(steps(tmp_path, second=20)) == ["second", "last"]
    assert ran(steps(tmp_path, second=20, last=200)) == ["last"]


def test_going_back_finds_the_old_versions(tmp_path: Path) -> None:
    ran(steps(tmp_path))
    before = manifest.open_version(str(tmp_path / "c"))
    ran(steps(tmp_path, first=2))
    assert ran(steps(tmp_path)) == []
    assert manifest.open_version(str(tmp_path / "c")) == before


def test_a_run_reads_its_own_versions_whatever_latest_says(tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")

    def run_and_disturb(config: AddConfig, compute: Compute, context: StageContext) -> StageResult:
        run_jobs({"other": add(a, 5)}, lambda _: None)
        return run_add(config, compute, context)

    disturbing = Stage(AddConfig, run_and_disturb, uses_ray=False)
    middle = AddConfig(output_uri=b, number=10)
    jobs = {
        "first": add(a, 1),
        "middle": Job(stage_name="disturb", stage=disturbing, config=middle, compute=Compute()),
        "last": add(c, 0, a),
    }
    outcomes = run_jobs(jobs, lambda _: None)
    assert outcomes[-1].version is not None
    assert outcomes[-1].version.manifest.extra["sum"] == 1


def test_a_killed_step_is_run_again(tmp_path: Path) -> None:
    def die(config: AddConfig, compute: Compute, context: StageContext) -> StageResult:
        storage.write_bytes(storage.join(context.output.uri, "sum.json"), b"half")
        raise KeyboardInterrupt

    config = AddConfig(output_uri=str(tmp_path / "a"), number=1)
    dying = Stage(AddConfig, die, uses_ray=False)
    killed = Job(stage_name="add", stage=dying, config=config, compute=Compute())
    with pytest.raises(KeyboardInterrupt):
        run_jobs({"first": killed}, lambda _: None)
    assert manifest.find_version(config.output_uri) is None
    assert ran({"first": add(config.output_uri, 1)}) == ["first"]
    version = manifest.open_version(config.output_uri)
    assert [storage.read_json(uri) for uri in version.files()] == [1]


def test_the_manifest_traces_a_number_to_its_inputs(tmp_path: Path) -> None:
    run_jobs(steps(tmp_path), lambda _: None)
    first = manifest.open_version(str(tmp_path / "a"))
    last = manifest.open_version(str(tmp_path / "c")).manifest
    assert last.inputs["input_uris[0]"].uri == first.uri
    assert last.inputs["input_uris[0]"].digest == first.digest
    assert last.config["input_uris"][0] == first.uri


def test_a_plan_counts_outputs_of_earlier_steps_as_there(tmp_path: Path) -> None:
    plans = {plan.name: plan for plan in plan_jobs(steps(tmp_path))}
    assert [plan.state for plan in plans.values()] == ["to run"] * 3
    assert "written by an earlier step" in plans["last"].reads["input_uris[0]"]
    assert list(tmp_path.iterdir()) == []
    ran(steps(tmp_path))
    states = [plan.state.split(" (")[0] for plan in plan_jobs(steps(tmp_path, second=20))]
    assert states == ["done", "to run", "to run"]


def test_a_plan_refuses_what_is_missing_and_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    jobs = {"only": add(str(tmp_path / "file" / "out"), 1, str(tmp_path / "absent"))}
    (plan,) = plan_jobs(jobs)
    assert plan.state == "not ready"
    missing, unwritable = plan.problems
    assert missing.startswith(f"config.input_uris[0]: {tmp_path}/absent: nothing is there; check the path")
    assert unwritable.startswith(f"config.output_uri: {tmp_path}/file/out: cannot be written")


def test_a_missing_input_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: nothing is there") as caught:
        run_jobs({"only": add(str(tmp_path / "a"), 1, str(tmp_path / "absent"))}, lambda _: None)
    assert caught.value.__notes__ == ["in 'only'"]


def test_the_summary_has_a_line_per_step(tmp_path: Path) -> None:
    config = pipeline.PipelineConfig(output_uri=str(tmp_path), steps=steps(tmp_path))
    context = StageContext(output=None, progress=lambda _: None)
    first = pipeline.run(config, Compute(), context).message
    again = pipeline.run(config, Compute(), context).message
    assert first is not None
    assert again is not None
    assert first.count(str(tmp_path)) == 3
    assert "up to date" not in first
    assert again.endswith("\neverything is up to date")
    assert "the sum is 111" in again


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinConfig:
    """Reads as `train`, `evaluate` and `label` do."""

    output_uri: str
    images_uri: str
    proposals_uri: str | None = None


def join(output_uri: str, images_uri: str, proposals_uri: str | None = None) -> Job:
    config = JoinConfig(output_uri=output_uri, images_uri=images_uri, proposals_uri=proposals_uri)
    return Job(
        stage_name="join", stage=table_stage(JoinConfig, "proposals"), config=config, compute=Compute()
    )


def images(output_uri: str) -> Job:
    config = MeetConfig(output_uri=output_uri)
    return Job(stage_name="draw", stage=table_stage(MeetConfig, "images"), config=config, compute=Compute())


def table_stage(kind: type, name: str) -> Stage:
    """Writes a table of this name, of one row."""

    def run_write(config: Any, compute: Compute, context: StageContext) -> StageResult:
        write_parquet(storage.join(context.output.uri, name, "rows.parquet"), pa.table({"image_id": ["0"]}))
        return StageResult(rows=1)

    return Stage(kind, run_write, uses_ray=False)


def test_proposals_of_other_images_are_noted(tmp_path: Path) -> None:
    ours, other, proposals, result = (str(tmp_path / name) for name in ("ours", "other", "props", "result"))
    made_of_them = {"images": images(ours), "other": images(other), "proposals": join(proposals, ours)}
    lines: list[str] = []
    run_jobs({**made_of_them, "use": join(result, ours, proposals)}, lines.append)
    assert not any("note:" in line for line in lines)
    run_jobs({**made_of_them, "use": join(result, other, proposals)}, lines.append)
    [note] = [line for line in lines if "note:" in line]
    assert f"the proposals were made for {ours}/" in note
    assert f"not for {other}/" in note


def test_a_place_that_holds_other_things_is_refused_before_the_work(tmp_path: Path) -> None:
    """As `fisa check` would."""
    ours, result = str(tmp_path / "ours"), str(tmp_path / "result")
    jobs = {"images": images(ours), "use": join(result, ours, ours)}
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"config\.proposals_uri: .* holds no version of proposals"):
        run_jobs(jobs, lines.append)
    assert not any("use: started" in line for line in lines)
