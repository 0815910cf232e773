"""What a stage runs on: its workers, and the Ray session they belong to."""

import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many workers a stage may use; Ray adds and removes them between the two."""

    min: int = 1
    """Workers that are kept even when there is little to do."""

    max: int = 1
    """Workers that are used when there is much to do."""

    def __post_init__(self) -> None:
        if self.min < 0:
            raise ValueError(
                f"min must be 0 or more, got {self.min}; write 0 to let all workers go when idle"
            )
        if self.max < max(self.min, 1):
            raise ValueError(
                f"max must be at least {max(self.min, 1)}, got {self.max}; raise max or lower min"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """The resources of one stage; the same keys for every stage."""

    workers: Workers = field(default_factory=Workers)
    """Least and greatest number of workers."""

    cpus_per_worker: float = 1.0
    """CPU cores that one worker reserves."""

    gpus_per_worker: float = 0.0
    """GPUs that one worker reserves; a fraction shares a GPU between workers."""

    memory_gb: float | None = None
    """Memory that one worker reserves, in GiB; nothing means no reservation."""

    def __post_init__(self) -> None:
        if self.cpus_per_worker < 0:
            raise ValueError(
                f"cpus_per_worker must be 0 or more, got {self.cpus_per_worker}; write 1 for one core"
            )
        if self.gpus_per_worker < 0:
            raise ValueError(
                f"gpus_per_worker must be 0 or more, got {self.gpus_per_worker}; write 0 for none"
            )
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(
                f"memory_gb must be above 0, got {self.memory_gb}; leave it out for no reservation"
            )

    def actor_pool(self) -> "ActorPoolStrategy":
        """The pool of actors for Ray Data's `map_batches(compute=...)`."""
        from ray.data import ActorPoolStrategy

        return ActorPoolStrategy(min_size=max(self.workers.min, 1), max_size=self.workers.max)

    def bundle(self) -> dict[str, float]:
        """What one worker reserves, as Ray Train's `resources_per_worker`."""
        bundle = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        if self.memory_gb is not None:
            bundle["memory"] = self.memory_gb * 2**30
        return {name: amount for name, amount in bundle.items() if amount}

    def ray_options(self) -> dict[str, Any]:
        """What one worker reserves, as keywords for `map_batches` or `ray.remote`."""
        options: dict[str, Any] = {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker}
        if self.memory_gb is not None:
            options["memory"] = int(self.memory_gb * 2**30)
        return options


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray inside this process; once."""
    # Colour codes before every worker's line are noise in a log file.
    os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stderr.isatty() else "0")
    # Under `uv run` Ray would install this project anew for every worker; they share our environment.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        return
    modules = source_modules()
    if not is_embedded():
        packages = {"py_modules": [str(path) for path in modules]} if modules else {}
        ray.init(runtime_env=packages, logging_level=logging.WARNING)
    else:
        _start_embedded([str(path.parent) for path in modules])
    _quiet_data_log()


def check_fits(compute: Compute) -> None:
    """Refuse a worker that this machine cannot hold, for which an embedded session would wait forever.

    A cluster may grow, so there it is not looked at.
    """
    if not is_embedded():
        return
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, field_name in (("GPU", "gpus_per_worker"), ("CPU", "cpus_per_worker")):
        wanted, most = getattr(compute, field_name), there.get(name, 0.0)
        if wanted > most:
            raise ValueError(
                f"compute.{field_name} is {wanted:g}, but Ray on this machine has {most:g} {name}s; "
                "lower it, or submit the job to a cluster that has them"
            )


def is_embedded() -> bool:
    """True when Ray is started by this process, without a dashboard; RAY_ADDRESS names no cluster."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def _start_embedded(source_roots: list[str]) -> None:
    import ray

    # A fresh local session would write a token into the home directory (ray/_private/authentication).
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An actor that waits for nodes to be reclaimed; this machine will not be.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Workers inherit the path, so nothing needs to be uploaded to this same machine.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*source_roots, *([inherited] if inherited else [])])
    # Logical cores: a small machine still needs room for a reader, a writer and the actors between them.
    cores = max(4, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level=logging.WARNING)


def _quiet_data_log() -> None:
    """Keep Ray Data's plans and statistics in its log file, and only warnings on the terminal."""
    import ray.data  # configures its handlers when imported

    for handler in logging.getLogger(ray.data.__name__).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def source_modules() -> list[Path]:
    """The folders of both packages when they run from a checkout; empty when they are installed."""
    platform_package = Path(__file__).resolve().parent
    model_package = platform_package.parents[1] / "fisa_model"
    from_checkout = platform_package.parent.name == "platform" and model_package.is_dir()
    return [platform_package, model_package] if from_checkout else []
