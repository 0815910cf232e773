"""Curves of a training run in the trackers of the field, through Accelerate's adapters.

`metrics.jsonl` is always written; these are for looking at a run while it trains, and beside others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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

_VERSION_TAG = "fisa.version"
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
        if not self.project:
            raise ValueError("project is empty; give it a name")


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


@contextmanager
def track(
    config: TrackingConfig | None, *, version_uri: str, facts: Mapping[str, Any], first_step: int = 0
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Begins, or goes on with, the run of a version, and yields what takes its reports; one rank does so.

    A tracker that fails later is left out from then on, with a warning, and training goes on.

    Args:
        config: of the trackers; None takes reports and does nothing.
        version_uri: where the run's version will be, by which a run that was stopped is known again.
        facts: what is shown about the run, as nested plain values.
        first_step: the step that the run is at; TensorBoard takes back what was drawn beyond.

    Raises:
        ValueError: a tracker cannot be reached, or refuses.
    """
    if config is None:
        yield lambda _: None
        return
    run = _Run(config, version_uri, facts, first_step)
    try:
        yield run.log
    finally:
        run.finish()


class _Run:
    def __init__(
        self, config: TrackingConfig, version_uri: str, facts: Mapping[str, Any], first_step: int
    ) -> None:
        self._version_uri = version_uri
        self._folder = tempfile.TemporaryDirectory()
        self._uploaded = time.monotonic()
        self._trackers: list[GeneralTracker] = []
        run_name = config.run_name or "/".join(version_uri.rstrip("/").split("/")[-3:])
        flat = dict(_flatten(facts))
        for name in config.trackers:
            try:
                self._trackers.append(self._start(name, config.project, run_name, flat, first_step))
            # Each has errors of its own: no key, no network, no such project.
            except Exception as error:
                self.finish()
                raise ValueError(
                    f"tracking: {name} cannot be started: {' '.join(str(error).split())}; set its variables "
                    "where the workers run, or leave it out"
                ) from error

    def log(self, row: Mapping[str, float]) -> None:
        values = {f"train/{name}": value for name, value in row.items() if name != "step"}
        for tracker in list(self._trackers):
            try:
                tracker.log(values, step=int(row["step"]))
            except Exception as error:  # noqa: BLE001
                self._give_up(tracker, error)
        if time.monotonic() - self._uploaded >= SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def finish(self) -> None:
        for tracker in list(self._trackers):
            try:
                tracker.finish()
            except Exception as error:  # noqa: BLE001
                self._give_up(tracker, error)
        self._upload()
        self._folder.cleanup()

    def _start(
        self, name: str, project: str, run_name: str, facts: dict[str, Any], first_step: int
    ) -> GeneralTracker:
        from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

        tracker: GeneralTracker
        if name == "tensorboard":
            # Its own table of settings would be a second run there.
            tracker = TensorBoardTracker("", self._folder.name, purge_step=first_step)
            tracker.start()
            return tracker
        if name == "wandb":
            run_id = hashlib.sha256(self._version_uri.encode()).hexdigest()[:16]
            tracker = WandBTracker(project, id=run_id, name=run_name, resume="allow")
            tracker.start()
            tracker.store_init_configuration(facts)
            return tracker
        import mlflow

        known = _mlflow_run(project, self._version_uri)
        tracker = MLflowTracker(project, run_id=known, run_name=run_name)
        tracker.start()
        if known is None:
            # What a run is cannot be said again there, if only because it has another number of workers now.
            mlflow.set_tag(_VERSION_TAG, self._version_uri)
            tracker.store_init_configuration(facts)
        return tracker

    def _upload(self) -> None:
        try:
            for file in filter(Path.is_file, Path(self._folder.name).rglob("*")):
                storage.upload(file, storage.join(self._version_uri, TENSORBOARD_FOLDER, file.name))
        except OSError as error:
            logger.warning("tracking: curves for TensorBoard could not be written: %s", error)
        self._uploaded = time.monotonic()

    def _give_up(self, tracker: GeneralTracker, error: Exception) -> None:
        logger.warning("tracking: %s took no more: %s; training goes on without it", tracker.name, error)
        self._trackers.remove(tracker)
        with suppress(Exception):
            tracker.finish()  # writes what it still holds


def _mlflow_run(project: str, version_uri: str) -> str | None:
    """The id of the run of this version, if there is one already."""
    import mlflow

    found = mlflow.search_runs(
        experiment_names=[project],
        filter_string=f"tags.`{_VERSION_TAG}` = '{version_uri}'",
        max_results=1,
        output_format="list",
    )
    return found[0].info.run_id if found else None


def _flatten(facts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Dotted names and values; lists as text, and nothing of what is None."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", value if isinstance(value, str | int | float) else str(value)
