import os
import subprocess
import sys
from pathlib import Path

import pytest

from fisa_platform.compute import Compute, Workers, shortage, source_modules

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_worker_reserves_what_the_spec_says() -> None:
    compute = Compute(cpus_per_worker=2, gpus_per_worker=0.5, memory_gb=1.5)
    assert compute.ray_options() == {"num_cpus": 2, "num_gpus": 0.5, "memory": 3 * 2**29}
    assert compute.bundle() == {"CPU": 2, "GPU": 0.5, "memory": 3 * 2**29}
    assert Compute().bundle() == {"CPU": 1.0}


def test_the_pool_of_actors_never_starts_empty() -> None:
    pool = Compute(workers=Workers(min=0, max=4)).actor_pool()
    assert (pool.min_size, pool.max_size) == (1, 4)


def test_the_pool_has_no_more_actors_than_there_are_blocks() -> None:
    compute = Compute(workers=Workers(min=2, initial=5, max=8))
    for blocks, expected in ((1, (1, 1, 1)), (4, (2, 4, 4)), (20, (2, 5, 8))):
        pool = compute.actor_pool(blocks=blocks)
        assert (pool.min_size, pool.initial_size, pool.max_size) == expected
    with pytest.raises(ValueError, match="initial must be from min to max, 2 to 8, got 9"):
        Workers(min=2, initial=9, max=8)


_LOOK = """
import os
from fisa_platform.compute import connect
connect()
import ray
print("sees", repr(ray.get(ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES")).remote())))
"""


def test_a_worker_that_asks_for_no_gpu_sees_none() -> None:
    """In a session of its own, as one is started where no cluster is named."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    run = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "sees ''" in run.stdout


@pytest.mark.parametrize(
    ("compute", "calls"),
    [
        (Compute(cpus_per_worker=8), 1),
        (Compute(cpus_per_worker=8, gpus_per_worker=1), 8),
        (Compute(cpus_per_worker=1, gpus_per_worker=0.5), 2),
        (Compute(cpus_per_worker=4.5, gpus_per_worker=1), 4),
    ],
)
def test_a_worker_with_a_gpu_has_a_batch_in_hand_for_each_core(compute: Compute, calls: int) -> None:
    pool = compute.actor_pool()
    assert pool.max_concurrent_calls_per_actor == compute.calls_per_worker == calls
    assert pool.enable_true_multi_threading == (calls > 1)


SMALL, LARGE = {"CPU": 4.0, "memory": 8.0 * 2**30}, {"CPU": 8.0, "GPU": 1.0, "memory": 16.0 * 2**30}


@pytest.mark.parametrize(
    ("compute", "nodes", "problem"),
    [
        (Compute(), [SMALL], None),
        (Compute(workers=Workers(min=4, max=9)), [SMALL], None),
        (Compute(gpus_per_worker=1, cpus_per_worker=7), [LARGE], None),
        (
            Compute(gpus_per_worker=1, cpus_per_worker=8),
            [LARGE],
            "compute.workers.min is 1, which takes 8 CPUs and 1 to read for them, but here are 8 CPUs",
        ),
        (Compute(gpus_per_worker=1, cpus_per_worker=8), [LARGE, SMALL], None),
        (
            Compute(cpus_per_worker=9),
            [SMALL, LARGE],
            "compute.cpus_per_worker asks for 9 CPUs, but no node here has more than 8 CPUs",
        ),
        (
            Compute(gpus_per_worker=1),
            [SMALL],
            "compute.gpus_per_worker asks for 1 GPUs, but no node here has more than 0 GPUs",
        ),
        (
            Compute(memory_gb=10, cpus_per_worker=6, gpus_per_worker=1),
            [{**SMALL, "memory": 2.0**40}, {**LARGE, "memory": 2.0**30}],
            "a worker of compute asks for 6 CPUs and 1 GPUs and 10 GiB of memory on one node, but none here "
            "has all of that",
        ),
        (
            Compute(workers=Workers(min=5, max=5)),
            [SMALL],
            "compute.workers.min is 5, which takes 5 CPUs, but here are 4 CPUs",
        ),
        (Compute(), [], "compute.cpus_per_worker asks for 1 CPUs, but no node here has more than 0 CPUs"),
    ],
)
def test_what_a_fixed_cluster_lacks_is_named(
    compute: Compute, nodes: list[dict[str, float]], problem: str | None
) -> None:
    assert shortage(compute, nodes) == problem


@pytest.mark.parametrize(("least", "most"), [(-1, 1), (3, 2), (0, 0)])
def test_impossible_numbers_of_workers_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Workers(min=least, max=most)


@pytest.mark.parametrize("field", ["cpus_per_worker", "gpus_per_worker", "memory_gb"])
def test_negative_resources_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got -1"):
        Compute(**{field: -1})


def test_a_checkout_names_both_packages() -> None:
    modules = [REPOSITORY / "platform" / "fisa_platform", REPOSITORY / "fisa_model"]
    assert source_modules() == modules


EMBEDDED = """
from fisa_platform import compute
compute.connect()
compute.connect()
import ray

@ray.remote
def where():
    import platform, fisa_model, fisa_platform
    return fisa_platform.__file__, fisa_model.__file__, platform.__file__

print(*ray.get(where.remote()), sep="\\n")
"""


def test_the_embedded_session_finds_both_packages_and_leaves_home_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "platform")}
    result = subprocess.run(
        [sys.executable, "-c", EMBEDDED],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    ours, model, standard = result.stdout.split()
    assert Path(ours).parent == REPOSITORY / "platform" / "fisa_platform"
    assert Path(model).parent == REPOSITORY / "fisa_model"
    assert str(REPOSITORY) not in standard or ".venv" in standard
    assert list(tmp_path.iterdir()) == []
