import os
import subprocess
import sys
from pathlib import Path

import pytest

from fisa_platform.compute import Compute, Workers, source_modules

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_worker_reserves_what_the_spec_says() -> None:
    compute = Compute(cpus_per_worker=2, gpus_per_worker=0.5, memory_gb=1.5)
    assert compute.ray_options() == {"num_cpus": 2, "num_gpus": 0.5, "memory": 3 * 2**29}
    assert compute.bundle() == {"CPU": 2, "GPU": 0.5, "memory": 3 * 2**29}
    assert Compute().bundle() == {"CPU": 1.0}


def test_the_pool_of_actors_never_starts_empty() -> None:
    pool = Compute(workers=Workers(min=0, max=4)).actor_pool()
    assert (pool.min_size, pool.max_size) == (1, 4)


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
