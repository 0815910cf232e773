"""Curves of a run in TensorBoard, Weights & Biases and MLflow."""

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import MLflowTracker, TensorBoardTracker
from event_files import read_curves

from fisa_platform import storage, tracking
from fisa_platform.tracking import RunTracker, TrackingConfig, check_installed

TENSORBOARD = TrackingConfig(trackers=("tensorboard",))
FACTS = {"iterations": 8, "model": {"image_size": 224, "clip": {"weights": None}}, "classes": ["cat", "dog"]}


@pytest.fixture(autouse=True)
def _one_process() -> None:
    PartialState(cpu=True)


def rows(steps: range) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, "grad_norm": 2.0} for step in steps]


def report(config: TrackingConfig, version: str, steps: range, *, history: range = range(0)) -> None:
    """A run of these steps, which goes on from those of its history."""
    with RunTracker(config, version_uri=version, facts=FACTS, history=rows(history)) as tracker:
        for row in rows(steps):
            tracker.log(row)


def test_every_report_is_a_point_of_a_curve(tmp_path: Path) -> None:
    report(TENSORBOARD, str(tmp_path), range(2, 8, 2))
    curves = read_curves(tmp_path)
    assert curves == {
        "train/loss": [(step, pytest.approx(1 / step)) for step in (2, 4, 6)],
        "train/grad_norm": [(step, 2.0) for step in (2, 4, 6)],
    }


@pytest.mark.parametrize("drawn", [range(1, 8), range(1, 3)], ids=["beyond", "less"])
def test_curves_of_a_run_that_goes_on_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: range
) -> None:
    """Whether what was stopped had drawn more than its checkpoint at step 4, or not yet that."""
    # Names of files have seconds.
    monkeypatch.setattr("time.time", iter(range(10**9, 10**9 + 10**6)).__next__)
    report(TENSORBOARD, str(tmp_path), drawn)
    report(TENSORBOARD, str(tmp_path), range(5, 9), history=range(1, 5))
    assert [step for step, _ in read_curves(tmp_path)["train/loss"]] == [*range(1, 9)]


def test_curves_are_written_when_training_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        RunTracker(TENSORBOARD, version_uri=str(tmp_path), facts=FACTS) as tracker,
    ):
        tracker.log({"step": 1, "loss": 0.5})
        raise RuntimeError("out of memory")
    assert read_curves(tmp_path) == {"train/loss": [(1, 0.5)]}


def test_curves_go_to_a_bucket_while_the_run_goes_on(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_UPLOADS", 0.0)
    with RunTracker(TENSORBOARD, version_uri=s3_uri, facts=FACTS) as tracker:
        sizes = []
        for step in (1, 2):
            tracker.log({"step": step, "loss": 0.5})
            sizes += storage.list_files(f"{s3_uri}/tensorboard").values()
    assert len(sizes) == 2 and 0 < sizes[0] < sizes[1]


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = TensorBoardTracker.log

    def full(self: TensorBoardTracker, values: dict[str, float], step: int) -> None:
        if step == 3:
            raise OSError("No space left on device")
        log(self, values, step=step)

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    with caplog.at_level(logging.WARNING):
        report(TENSORBOARD, str(tmp_path), range(1, 6))
    assert [step for step, _ in read_curves(tmp_path)["train/loss"]] == [1, 2]
    assert caplog.messages == [
        "tracking: tensorboard took no more: No space left on device; training goes on without it"
    ]


def test_a_place_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        report(TENSORBOARD, str(tmp_path), range(1, 3))
    assert "curves for TensorBoard could not be written" in caplog.text


def test_a_client_that_fails_in_its_own_way_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class ExpiredToken(Exception):
        """As of boto's, which are no OSError."""

    def refuse(path: Path, uri: str) -> None:
        raise ExpiredToken("the SSO session has expired")

    monkeypatch.setattr(storage, "upload", refuse)
    with caplog.at_level(logging.WARNING):
        report(TENSORBOARD, str(tmp_path), range(1, 3))
    assert "could not be written: the SSO session has expired" in caplog.text


def test_a_tracker_that_cannot_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: TensorBoardTracker) -> None:
        raise RuntimeError("no such\n project")

    monkeypatch.setattr(TensorBoardTracker, "start", refuse)
    with pytest.raises(ValueError, match="tensorboard cannot be started: no such project; set its variables"):
        report(TENSORBOARD, str(tmp_path), range(1, 3))


def test_a_run_that_goes_on_does_so_without_a_tracker_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: TensorBoardTracker) -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(TensorBoardTracker, "start", refuse)
    with caplog.at_level(logging.WARNING):
        report(TENSORBOARD, str(tmp_path), range(3, 5), history=range(1, 3))
    assert caplog.messages == [
        "tracking: tensorboard cannot be started: no answer; training goes on without it"
    ]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(TENSORBOARD)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(ValueError, match="names 'wandb', but the package wandb is not installed; add it"):
        check_installed(TrackingConfig(trackers=("tensorboard", "wandb")))


def test_mistakes_in_the_config_are_named() -> None:
    for trackers, message in (
        ((), "must be some of tensorboard, wandb, mlflow, got none"),
        (("tensorbord",), "got tensorbord"),
        (("wandb", "wandb"), "names one twice, got wandb, wandb"),
    ):
        with pytest.raises(ValueError, match=message):
            TrackingConfig(trackers=trackers)  # type: ignore[arg-type]
    for project in ("", "team/seve", "o'brien"):
        with pytest.raises(ValueError, match="project must be of letters, digits, spaces and"):
            TrackingConfig(trackers=("wandb",), project=project)


@pytest.fixture
def wandb_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Weights & Biases keeps runs that it does not send."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield tmp_path / "wandb"


def test_weights_and_biases_knows_a_run_again(wandb_runs: Path, tmp_path: Path) -> None:
    config = TrackingConfig(trackers=("wandb",))
    for name, steps in (("study/weights/one", range(1, 4)), ("study/weights/one", range(3, 6))):
        report(config, str(tmp_path / name), steps)
    for folder in wandb_runs.glob("offline-run-*"):
        [record] = [path.read_bytes() for path in folder.glob("*.wandb")]
        assert all(text in record for text in (b"study/weights/one", b"train/loss", b"image_size"))
    assert len(run_ids(wandb_runs)) == 1
    report(config, str(tmp_path / "study/weights/other"), range(1, 2))
    assert len(run_ids(wandb_runs)) == 2


def run_ids(wandb_runs: Path) -> set[str]:
    # offline-run-<date>-<id>, and a number where two began in one second.
    return {path.name.split("-")[3] for path in wandb_runs.glob("offline-run-*")}


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    module.set_tracking_uri(f"file://{tmp_path}/mlruns")
    return module


@pytest.mark.parametrize("variable", [None, "of the team"])
def test_mlflow_goes_on_with_the_run_of_a_version(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", variable)
    config = TrackingConfig(trackers=("mlflow",), project="seve", run_name="first")
    one, other = str(tmp_path / "o'ne"), str(tmp_path / "other")
    report(config, one, range(1, 4))
    with RunTracker(config, version_uri=one, facts={**FACTS, "iterations": 9}) as tracker:
        tracker.log({"step": 4, "loss": 0.125})
    with pytest.raises(RuntimeError), RunTracker(config, version_uri=other, facts=FACTS):
        raise RuntimeError("out of memory")
    runs = mlflow.search_runs(experiment_names=[variable or "seve"], output_format="list")
    assert {run.data.tags["fisa.version"]: run.info.status for run in runs} == {
        one: "FINISHED",
        other: "FAILED",
    }
    (run,) = (run for run in runs if run.info.status == "FINISHED")
    assert run.info.run_name == "first"
    assert run.data.metrics == {"train/loss": 0.125, "train/grad_norm": 2.0}
    assert run.data.params == {"iterations": "8", "model.image_size": "224", "classes": "['cat', 'dog']"}
    assert mlflow.active_run() is None


def test_a_run_that_mlflow_does_not_begin_is_not_left_open(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("parameters are not taken")

    monkeypatch.setattr(MLflowTracker, "store_init_configuration", refuse)
    with pytest.raises(ValueError, match="mlflow cannot be started: parameters are not taken"):
        report(TrackingConfig(trackers=("mlflow",)), str(tmp_path), range(1, 2))
    assert mlflow.active_run() is None


def test_a_tracking_server_that_is_not_there_is_named(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: MLflowTracker) -> None:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(MLflowTracker, "start", unreachable)
    with pytest.raises(ValueError, match="mlflow cannot be started: connection refused"):
        report(TrackingConfig(trackers=("mlflow",)), str(tmp_path), range(1, 2))
