"""What a stage runs on: its workers, and the Ray session they belong to."""

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
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

    initial: int | None = None
    """Workers to ask for at once, so that nodes are on their way; by default as many as `min`."""

    def __post_init__(self) -> None:
        if self.min < 0:
            raise ValueError(
                f"min must be 0 or more, got {self.min}; write 0 to let all workers go when idle"
            )
        if self.max < max(self.min, 1):
            raise ValueError(
                f"max must be at least {max(self.min, 1)}, got {self.max}; raise max or lower min"
            )
        if self.initial is not None and not max(self.min, 1) <= self.initial <= self.max:
            raise ValueError(
                f"initial must be from min to max, {max(self.min, 1)} to {self.max}, got {self.initial}"
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

    @property
    def calls_per_worker(self) -> int:
        """Batches that a worker has in hand, each in a thread: with a GPU one for each of its cores.

        Pictures are read, drawn and encoded on the cores, which must not wait for each other, nor the GPU for
        them. In a network is one batch at a time.
        """
        return max(2, int(self.cpus_per_worker)) if self.gpus_per_worker else 1

    def actor_pool(self, *, blocks: int | None = None) -> "ActorPoolStrategy":
        """The pool of actors for Ray Data's `map_batches(compute=...)`.

        Args:
            blocks: of the dataset; more actors would each load a model for nothing.
        """
        from ray.data import ActorPoolStrategy

        calls = self.calls_per_worker
        most = self.workers.max if blocks is None else min(self.workers.max, blocks)
        least = min(max(self.workers.min, 1), most)
        return ActorPoolStrategy(
            min_size=least,
            max_size=most,
            initial_size=min(self.workers.initial or least, most),
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=calls > 1,
        )

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


_HIDES_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"


_connecting = threading.Lock()
"""Jobs that run at the same time connect once."""


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray inside this process; once."""
    with _connecting:
        _connect()


def _connect() -> None:
    # Colour codes before every worker's line are noise in a log file.
    os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stderr.isatty() else "0")
    # Under `uv run` Ray would install this project anew for every worker; they share our environment.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Workers that ask for no GPU would see all of them, and fill their memory beside those that do.
    os.environ.setdefault(_HIDES_GPUS, "1")
    import ray

    if ray.is_initialized():
        return
    modules = source_modules()
    if not is_embedded():
        environment: dict[str, Any] = {"env_vars": {_HIDES_GPUS: os.environ[_HIDES_GPUS]}}
        if modules:
            environment["py_modules"] = [str(path) for path in modules]
        ray.init(runtime_env=environment, logging_level=logging.WARNING)
    else:
        _start_embedded([str(path.parent) for path in modules])
    _quiet_data_log()


def check_fits(compute: Compute) -> None:
    """Refuse a plan that would wait forever for what the cluster lacks; one that may grow is not looked at.

    Raises:
        ValueError: see `shortage`.
    """
    import ray

    if may_grow():
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    problem = shortage(compute, nodes)
    if problem:
        raise ValueError(
            f"{problem}; lower it, or submit the job to a cluster that has more, or that has an autoscaler"
        )


def shortage(compute: Compute, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What the least number of workers lacks on nodes with these resources; None where they fit."""
    bundle = compute.bundle()
    for name, wanted in bundle.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            asked, largest = _amount(name, wanted), _amount(name, most)
            return f"compute.{_FIELDS[name]} asks for {asked}, but no node here has more than {largest}"
    if not any(all(node.get(name, 0.0) >= wanted for name, wanted in bundle.items()) for node in nodes):
        asked = " and ".join(_amount(name, wanted) for name, wanted in bundle.items())
        return f"a worker of compute asks for {asked} on one node, but none here has all of that"
    least = max(compute.workers.min, 1)
    for name, wanted in bundle.items():
        # Those who have a GPU are read for by others; see `tables.reader_options`.
        reader = 1.0 if name == "CPU" and compute.gpus_per_worker else 0.0
        there = sum(node.get(name, 0.0) for node in nodes)
        if least * wanted + reader > there:
            asked = _amount(name, least * wanted) + (" and 1 to read for them" if reader else "")
            return f"compute.workers.min is {least}, which takes {asked}, but here are {_amount(name, there)}"
    return None


_FIELDS = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker", "memory": "memory_gb"}


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.3g} GiB of memory" if name == "memory" else f"{amount:g} {name}s"


def may_grow() -> bool:
    """Whether nodes may come: Ray's autoscaler is on, or may be, in a pod or on a head that `ray up` made."""
    if is_embedded():
        return False
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    in_a_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    started_by_ray_up = Path("~/ray_bootstrap_config.yaml").expanduser().exists()
    return in_a_pod or started_by_ray_up or is_autoscaler_v2(fetch_from_server=True)


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
    """Keep Ray Data's plans, statistics and tracebacks in its log file, and only warnings on the terminal.

    An error of a worker is raised as what it is, so that it ends as one sentence.
    """
    import ray.data  # configures its handlers when imported

    ray.data.DataContext.get_current().raise_original_map_exception = True
    for handler in logging.getLogger(ray.data.__name__).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING


def source_modules() -> list[Path]:
    """The folders of both packages when they run from a checkout; empty when they are installed."""
    platform_package = Path(__file__).resolve().parent
    model_package = platform_package.parents[1] / "fisa_model"
    from_checkout = platform_package.parent.name == "platform" and model_package.is_dir()
    return [platform_package, model_package] if from_checkout else []
