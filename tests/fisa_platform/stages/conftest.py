"""Running specs, as plain data, on the session's Ray."""

from collections.abc import Callable
from typing import Any

import pytest

from fisa_platform.manifest import Version
from fisa_platform.runner import run_jobs
from fisa_platform.spec import job_from_data

Run = Callable[..., Version]


@pytest.fixture(scope="session")
def run(ray_cluster: None) -> Run:
    """Runs one stage and returns the version that it wrote."""

    def run_stage(stage: str, *, compute: dict[str, Any] | None = None, **config: Any) -> Version:
        job = job_from_data({"stage": stage, "config": config, "compute": compute or {}})
        (outcome,) = run_jobs({stage: job}, print)
        assert outcome.ran
        assert outcome.version is not None
        return outcome.version

    return run_stage
