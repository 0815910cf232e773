"""`ray job submit jobs/x.yaml`, with and without the hook, on a cluster that this test starts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fisa_platform.manifest import open_version
from fisa_platform.submit_hook import code_digest, overrides_in, spec_and_options

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "train.yaml"
    path.write_text("stage: train\n")
    return str(path)


@pytest.mark.parametrize(
    "words", [(), ("python", "platform"), ("python", "platform", "run"), ("fisa", "run")]
)
def test_every_form_of_the_command_names_the_spec(spec: str, words: tuple[str, ...]) -> None:
    assert spec_and_options((*words, spec, "--set", "a.b=1")) == [spec, "--set", "a.b=1"]


@pytest.mark.parametrize(
    "words", [("python", "script.py"), ("echo", "x.yaml"), ("absent.yaml",), ("fisa", "check", "x.yaml"), ()]
)
def test_other_commands_are_left_to_ray(words: tuple[str, ...]) -> None:
    assert spec_and_options(words) is None


def test_overrides_are_read_in_both_spellings() -> None:
    assert overrides_in(["--set", "a=1", "--set=b=2", "--verbose", "--set", "c=3"]) == ["b=2", "a=1", "c=3"]


def test_the_digest_follows_the_code(tmp_path: Path) -> None:
    for name in ("fisa_model", "platform"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("1")
    before = code_digest(tmp_path)
    (tmp_path / "platform" / "notes.txt").write_text("not code")
    assert code_digest(tmp_path) == before
    (tmp_path / "platform" / "a.py").write_text("2")
    assert code_digest(tmp_path) != before


SHARD = """#!/usr/bin/env -S python platform
stage: shard
config:
  output_uri: {output}
  toyworld: {{scenes: 4, names: seen}}
"""


@dataclass(frozen=True)
class Cluster:
    checkout: Path
    """The copy of the repository in which the head was started."""

    environment: dict[str, str]
    """The variables that a person would submit with."""

    def submit(self, *words: str, folder: Path | None = None, **variables: str) -> tuple[int, str]:
        """Run `ray job submit` and wait; the exit code and all it said."""
        result = subprocess.run(
            [str(SCRIPTS / "ray"), "job", "submit", *words],
            cwd=folder or self.checkout,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=800,
        )
        return result.returncode, result.stdout


def unused_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def add_spec(checkout: Path, name: str, output: Path) -> str:
    path = checkout / "jobs" / name
    path.write_text(SHARD.format(output=output))
    path.chmod(0o755)
    return f"jobs/{name}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node started in a copy of the checkout, stopped by its process group."""
    checkout = tmp_path_factory.mktemp("clone") / "fisa"
    for name in ("platform", "fisa_model", "jobs"):
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Sockets lie below this folder, and their paths must be short.
    ray_folder = Path(tempfile.mkdtemp(prefix="ray"))
    dashboard = unused_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment.pop("PYTHONPATH", None)
    environment |= {
        "PATH": f"{SCRIPTS}{os.pathsep}{environment['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(ray_folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = ["--port", unused_port(), "--dashboard-port", dashboard]
    ports += ["--dashboard-agent-listen-port", unused_port(), "--ray-client-server-port", unused_port()]
    log_path = ray_folder / "head.log"
    with log_path.open("wb") as log:
        head = subprocess.Popen(
            [str(SCRIPTS / "ray"), "start", "--head", "--block", "--num-cpus", "4", *ports],
            cwd=checkout,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(f"{address}/api/version", head, log_path)
        yield Cluster(checkout, {**environment, "RAY_API_SERVER_ADDRESS": address})
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(ray_folder, ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no cluster at {url}: {log_path.read_text()}")


def small_quickstart(output: Path) -> list[str]:
    """The quickstart with fewer scenes and steps, as words of a command."""
    steps = {"shard-train": "toyworld.scenes=24", "shard-val": "toyworld.scenes=16", "train": "iterations=4"}
    values = [f"config.steps.{step}.config.{value}" for step, value in steps.items()]
    sets = [word for value in [f"config.output_uri={output}", *values] for word in ("--set", value)]
    return ["jobs/quickstart.yaml", *sets]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_short_command_runs_where_the_head_has_the_checkout(cluster: Cluster, tmp_path: Path) -> None:
    code, output = cluster.submit("--", *small_quickstart(tmp_path))
    assert code == 0, output
    assert "succeeded" in output
    assert open_version(str(tmp_path / "report")).files(suffix="result.json")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_checkout_can_be_shipped(cluster: Cluster, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy"
    shutil.copytree(cluster.checkout, elsewhere)
    words = small_quickstart(tmp_path / "out")
    code, output = cluster.submit("--working-dir", ".", "--", *words, folder=elsewhere)
    assert code == 0, output
    assert "succeeded" in output
    assert open_version(str(tmp_path / "out" / "report")).files(suffix="result.json")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_hook_ships_the_checkout_once(cluster: Cluster, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy"
    shutil.copytree(cluster.checkout, elsewhere)
    spec = add_spec(elsewhere, "shard_hooked.yaml", tmp_path / "out")
    hook = {
        "RAY_JOB_SUBMIT_HOOK": "fisa_platform.submit_hook.submit",
        "PYTHONPATH": f"{elsewhere / 'platform'}{os.pathsep}{elsewhere}",
    }
    code, output = cluster.submit(spec, folder=elsewhere, **hook)
    assert code == 0, output
    assert "succeeded" in output
    assert open_version(str(tmp_path / "out")).manifest.rows == 4
    code, output = cluster.submit(spec, folder=elsewhere, **hook)
    assert code == 0, output
    assert "already submitted (succeeded)" in output
    code, output = cluster.submit("--", spec, "--set", "config.toyworld.scenes=-1", folder=elsewhere, **hook)
    assert code == 2, output
    assert "scenes must be at least 1, got -1" in output
    assert "Traceback" not in output
