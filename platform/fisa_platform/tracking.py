"""Curves of a training run in the trackers of the field, through Accelerate's adapters.

`metrics.jsonl` is always written; these are for looking at a run while it trains, and beside others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fisa_platform import storage

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"
"""In the folder of a version, beside its data."""

SECONDS_BETWEEN_UPLOADS = 30.0
"""How old TensorBoard's file may be where the run writes."""

_RUN_TAG = "fisa.run"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where the curves of a run go beside its `metrics.jsonl`. It changes no weights and makes nothing anew.

    Weights & Biases and MLflow read their own variables where the workers run: `WANDB_API_KEY`,
    `WANDB_ENTITY`, `MLFLOW_TRACKING_URI` and so on.
    """

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...]
    """`tensorboard` writes into the folder `tensorboard` of the run's version."""

    project: str = "fisa"
    """The project of Weights & Biases, or experiment of MLflow."""

    run_name: str | None = None
    """What the run is called there; none is where its version lies: the last folders of that location."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.trackers if name not in _PACKAGES]
        if unknown or not self.trackers:
            raise ValueError(
                f"trackers must be some of {', '.join(_PACKAGES)}, got {', '.join(unknown) or 'none'}; leave "
                "tracking out to have none"
            )
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers names one twice, got {', '.join(self.trackers)}; name each once")
        if not re.fullmatch(r"[\w .-]+", self.project):
            raise ValueError(
                f"project must be of letters, digits, spaces and . _ -, which all trackers take, got "
                f"{self.project!r}"
            )


def check_installed(config: TrackingConfig) -> None:
    """Refuses trackers whose packages are not there, before workers are started.

    Raises:
        ValueError: one is missing.
    """
    for name in config.trackers:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"tracking.trackers names {name!r}, but the package {package} is not installed; add it, here "
                "and to the image of the workers, or leave the tracker out"
            )


class RunTracker:
    """A run in its trackers. One rank has it; a context, at whose end all trackers are closed.

    A tracker that fails on the way is left out from then on, with a warning, and training goes on.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        version_uri: str,
        facts: Mapping[str, Any],
        history: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Begin, or go on with, the run of a version.

        Args:
            config: of the trackers.
            version_uri: where the run's version will be, by which a run that was stopped is known again.
            facts: what is shown about the run, as nested plain values.
            history: reports up to the checkpoint that the run goes on from.

        Raises:
            ValueError: a tracker of a run that has just begun cannot be reached, or refuses.
        """
        # A server that is gone shall not hold all ranks for minutes, as MLflow's own patience would.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._version_uri = version_uri
        self._run_id = hashlib.sha256(version_uri.encode()).hexdigest()[:16]
        self._folder = tempfile.TemporaryDirectory()
        self._uploaded = time.monotonic()
        self._trackers: list[GeneralTracker] = []
        run_name = config.run_name or "/".join(version_uri.rstrip("/").split("/")[-3:])
        start = {
            "tensorboard": lambda: self._start_tensorboard(history),
            "wandb": lambda: self._start_wandb(config.project, run_name, dict(_flatten(facts))),
            "mlflow": lambda: self._start_mlflow(config.project, run_name, dict(_flatten(facts))),
        }
        for name in config.trackers:
            try:
                start[name]()
            # Each has errors of its own: no key, no network, no such project.
            except Exception as error:
                problem = f"tracking: {name} cannot be started: {' '.join(str(error).split())}"
                if history:
                    logger.warning("%s; training goes on without it", problem)
                    continue
                self._close(failed=True)
                raise ValueError(
                    f"{problem}; set its variables where the workers run, or leave it out"
                ) from error

    def __enter__(self) -> RunTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(failed=kind is not None)

    def log(self, row: Mapping[str, float]) -> None:
        """Add one report, with its "step"."""
        for tracker in list(self._trackers):
            try:
                _log(tracker, row)
            except Exception as error:  # noqa: BLE001
                self._give_up(tracker, error)
        if time.monotonic() - self._uploaded >= SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def _start_tensorboard(self, history: Sequence[Mapping[str, float]]) -> None:
        from accelerate.tracking import TensorBoardTracker

        # From step 0 on, what an earlier file has is taken back: it may end before the checkpoint, or after.
        tracker = TensorBoardTracker("", self._folder.name, purge_step=0)
        tracker.start()
        self._trackers.append(tracker)
        for row in history:
            _log(tracker, row)

    def _start_wandb(self, project: str, run_name: str, facts: dict[str, Any]) -> None:
        from accelerate.tracking import WandBTracker

        tracker = WandBTracker(project, id=self._run_id, name=run_name, resume="allow")
        tracker.start()
        self._trackers.append(tracker)
        tracker.store_init_configuration(facts)

    def _start_mlflow(self, project: str, run_name: str, facts: dict[str, Any]) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        known = mlflow.search_runs(
            experiment_names=[os.environ.get("MLFLOW_EXPERIMENT_NAME", project)],
            filter_string=f"tags.`{_RUN_TAG}` = '{self._run_id}'",
            max_results=1,
            output_format="list",
        )
        run_id = known[0].info.run_id if known else None
        tracker = MLflowTracker(project, run_id=run_id, run_name=run_name)
        tracker.start()
        self._trackers.append(tracker)
        if not known:
            # What a run is cannot be said again there, if only because it has another number of workers now.
            mlflow.set_tags({_RUN_TAG: self._run_id, "fisa.version": self._version_uri})
            tracker.store_init_configuration(facts)

    def _close(self, *, failed: bool) -> None:
        for tracker in list(self._trackers):
            try:
                _finish(tracker, failed=failed)
            except Exception as error:  # noqa: BLE001
                self._give_up(tracker, error)
        self._upload()
        self._folder.cleanup()

    def _upload(self) -> None:
        try:
            for file in filter(Path.is_file, Path(self._folder.name).rglob("*")):
                storage.upload(file, storage.join(self._version_uri, TENSORBOARD_FOLDER, file.name))
        # A bucket's client has errors of its own.
        except Exception as error:  # noqa: BLE001
            logger.warning("tracking: curves for TensorBoard could not be written: %s", error)
        self._uploaded = time.monotonic()

    def _give_up(self, tracker: GeneralTracker, error: Exception) -> None:
        logger.warning("tracking: %s took no more: %s; training goes on without it", tracker.name, error)
        self._trackers.remove(tracker)
        # Of a file, what is still held is written; a server that did not answer is not asked again.
        if tracker.requires_logging_directory:
            with suppress(Exception):
                tracker.finish()


def _log(tracker: GeneralTracker, row: Mapping[str, float]) -> None:
    values = {f"train/{name}": value for name, value in row.items() if name != "step"}
    tracker.log(values, step=int(row["step"]))


def _finish(tracker: GeneralTracker, *, failed: bool) -> None:
    """Close a tracker; two of them say how a run ended, which Accelerate does not pass on."""
    if failed and tracker.name == "wandb":
        tracker.tracker.finish(exit_code=1)
    elif failed and tracker.name == "mlflow":
        import mlflow

        mlflow.end_run("FAILED")
    else:
        tracker.finish()


def _flatten(facts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Dotted names and values; lists as text, and nothing of what is None."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", value if isinstance(value, str | int | float) else str(value)
