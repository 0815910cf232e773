"""Whatever is killed, a stage ends with the table of a run left alone, every image once."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from faulty_proxy import Faults, faulty_proxy
from labels import assert_same_labels
from processes import SECONDS, finish, start

from fisa_platform import manifest, storage
from fisa_platform.manifest import Version
from fisa_platform.rows import TableRows
from fisa_platform.schema import IMAGES, PREDICTIONS, PROPOSALS

pytestmark = pytest.mark.slow

SCENES, ROWS_PER_FILE = 480, 8
Run = Callable[..., Version]

ON_TWO_NODES = """
import os, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster

spec, output, files = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
node = cluster.add_node(num_cpus=2)
os.environ["RAY_ADDRESS"] = cluster.address

def kill():
    while len(list(output.glob("*/run-*/proposals/*.parquet"))) < files:
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)
    print("killed a node", flush=True)

threading.Thread(target=kill, daemon=True).start()
from fisa_platform.cli import main
try:
    main(["run", spec])
except SystemExit as ended:
    # Ray's own end, with one of its raylets gone, is not what is tested.
    sys.stdout.flush()
    os._exit(ended.code or 0)
"""


@pytest.fixture(scope="module")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    output_uri = str(tmp_path_factory.mktemp("kills") / "images")
    toyworld = {"scenes": SCENES, "names": "all"}
    return run("shard", toyworld=toyworld, rows_per_file=60, output_uri=output_uri).uri


@pytest.fixture(scope="module")
def expected(images: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of a run that was left alone."""
    output = tmp_path_factory.mktemp("undisturbed")
    finish(start(write_spec(output, images)))
    return rows_of(output)


def write_spec(output: Path, images: str, *, output_uri: str | None = None, **changes: Any) -> Path:
    """A spec in `output` that proposes into it, or elsewhere; `changes` are of its compute."""
    config = {
        "images_uri": images,
        "generator": "felzenszwalb",
        "batch_size": 4,
        "rows_per_file": ROWS_PER_FILE,
        "output_uri": output_uri or str(output / "proposals"),
    }
    compute = {"workers": {"min": 2, "max": 2}}
    spec = output / "propose.yaml"
    # JSON is YAML.
    spec.write_text(json.dumps({"stage": "propose", "config": config, "compute": {**compute, **changes}}))
    return spec


def paths_in(output: Path) -> list[Path]:
    """Files of proposals, committed or not."""
    return list(output.glob("proposals/*/run-*/proposals/*.parquet"))


def in_version(path: Path) -> str:
    return str(Path(*path.parts[-3:]))


def files_in(output: Path) -> set[str]:
    return {in_version(path) for path in paths_in(output)}


def wait_for(output: Path, fraction: float, process: subprocess.Popen[str]) -> set[str]:
    """Wait until so much of the table is written; its files."""
    deadline = time.monotonic() + SECONDS
    while len(found := files_in(output)) < fraction * SCENES / ROWS_PER_FILE:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def rows_of(output: Path) -> list[dict[str, Any]]:
    version = manifest.open_version(str(output / "proposals"))
    assert version.manifest.rows == SCENES
    return list(TableRows(version.files("proposals/"), PROPOSALS.names))


def committed_files(output: Path) -> set[str]:
    files = manifest.open_version(str(output / "proposals")).manifest.files
    return {file.path for file in files if "/proposals/" in file.path}


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_a_killed_driver_is_gone_on_with(
    expected: list[dict[str, Any]], images: str, tmp_path: Path, fraction: float
) -> None:
    spec = write_spec(tmp_path, images)
    process = start(spec)
    wait_for(tmp_path, fraction, process)
    kill(process)
    before = files_in(tmp_path)
    said = finish(start(spec))
    done = sum(pq.read_metadata(path).num_rows for path in paths_in(tmp_path) if in_version(path) in before)
    assert 0 < done < SCENES
    assert f"{done} images were done by a run that did not end" in said
    assert rows_of(tmp_path) == expected
    assert before < committed_files(tmp_path), "what was written is used, and not made again"
    assert len(files_in(tmp_path)) == len(committed_files(tmp_path))
    assert "up to date" in finish(start(spec))


def test_two_runs_at_the_same_time_commit_one_version(
    expected: list[dict[str, Any]], images: str, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, images)
    processes = [start(spec), start(spec)]
    said = [finish(process) for process in processes]
    assert rows_of(tmp_path) == expected
    assert len(list(tmp_path.glob("proposals/*/manifest.json"))) == 1
    assert all("480 images, 0 rejected" in output for output in said)
    run_ids = {path.parent.parent.name for path in paths_in(tmp_path)}
    assert len(run_ids) == 2, "both were at work"


def test_a_full_disk_costs_nothing_but_time(
    expected: list[dict[str, Any]], images: str, tmp_path: Path
) -> None:
    """It is said in one sentence, and when there is room, the job goes on with what it had written."""
    output = tmp_path / "disk"
    output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(output)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        failed = start(spec := write_spec(output, images))
        said, _ = failed.communicate(timeout=SECONDS)
        assert failed.returncode == 1, said
        assert "No space left on device; choose another place or make room there" in said
        assert "Traceback" not in said
        before = files_in(output)
        assert before
        subprocess.run(["mount", "-o", "remount,size=100m", str(output)], check=True)
        assert "images were done by a run that did not end" in finish(start(spec))
        assert rows_of(output) == expected
        assert before <= committed_files(output)
    finally:
        subprocess.run(["umount", str(output)], check=True)


def test_a_killed_shard_is_gone_on_with(images: str, tmp_path: Path) -> None:
    toyworld = {"scenes": SCENES, "names": "all"}
    config = {"toyworld": toyworld, "rows_per_file": ROWS_PER_FILE, "output_uri": str(tmp_path / "images")}
    spec = tmp_path / "shard.yaml"
    spec.write_text(json.dumps({"stage": "shard", "config": config, "compute": {"workers": {"max": 2}}}))
    before = kill_after(start(spec), tmp_path, "images/*/run-*/images/*.parquet")
    assert "images were done by a run that did not end" in finish(start(spec))
    version = manifest.open_version(str(tmp_path / "images"))
    undisturbed = manifest.open_version(images)
    rows, others = (list(TableRows(v.files("images/"), IMAGES.names)) for v in (version, undisturbed))
    assert rows == others
    assert {in_version(path) for path in before} <= {file.path for file in version.manifest.files}


def test_a_killed_label_is_gone_on_with(run: Run, tmp_path: Path) -> None:
    scenes = SCENES // 3  # a label takes several times as long as a proposal
    images = run("shard", toyworld={"scenes": scenes, "names": "all"}, output_uri=str(tmp_path / "images"))
    config = {
        "images_uri": images.uri,
        "classifier": {"frozen": {"clip": {"model": "toy"}, "image_size": 224}},
        "things": ["plain red circle", "striped blue star"],
        "batch_size": 4,
        "rows_per_file": ROWS_PER_FILE,
    }
    specs, versions = {}, {}
    for name in ("killed", "undisturbed"):
        spec = {"stage": "label", "config": {**config, "output_uri": str(tmp_path / name)}}
        specs[name] = tmp_path / f"{name}.yaml"
        specs[name].write_text(json.dumps({**spec, "compute": {"workers": {"min": 2, "max": 2}}}))
    before = kill_after(start(specs["killed"]), tmp_path, "killed/*/run-*/predictions/*.parquet")
    assert "images were done by a run that did not end" in finish(start(specs["killed"]))
    finish(start(specs["undisturbed"]))
    pictures = []
    for name in specs:
        versions[name] = manifest.open_version(str(tmp_path / name))
        run_uri = Path(versions[name].uri, versions[name].manifest.run_id or "")
        pictures.append({p.relative_to(run_uri): p.read_bytes() for p in run_uri.rglob("*.*g")})
    assert len(pictures[0]) == 2 * scenes
    assert pictures[0] == pictures[1]
    rows = [list(TableRows(v.files("predictions/"), PREDICTIONS.names)) for v in versions.values()]
    assert_same_labels(rows[0], rows[1])
    documents = [storage.read_json(version.file("panoptic.json")) for version in versions.values()]
    assert_same_labels(*(document.pop("annotations") for document in documents))
    assert documents[0] == documents[1]
    committed = {file.path for file in versions["killed"].manifest.files}
    assert {in_version(path) for path in before} <= committed


def kill_after(process: subprocess.Popen[str], folder: Path, pattern: str, files: int = 10) -> set[Path]:
    """Kill a driver once it has written so many files; these, when its workers are gone, too."""
    deadline = time.monotonic() + SECONDS
    while len(before := set(folder.glob(pattern))) < files:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    kill(process)
    return before


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a driver; back when Ray has noticed and ended its workers, which may still write until then."""
    # Ray's agents write nothing, and some outlive it by more than a minute.
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "Agent" not in child.name()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(workers, timeout=60)


def test_a_killed_actor_is_replaced(expected: list[dict[str, Any]], images: str, tmp_path: Path) -> None:
    process = start(write_spec(tmp_path, images))
    wait_for(tmp_path, 0.3, process)
    actors = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "Loaded" in " ".join(child.cmdline())
    ]
    assert actors
    actors[0].kill()
    finish(process)
    assert rows_of(tmp_path) == expected


def test_a_killed_node_costs_nothing_but_time(
    expected: list[dict[str, Any]], images: str, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, images, workers={"min": 3, "max": 3})
    files = int(0.3 * SCENES / ROWS_PER_FILE)
    said = finish(start("-c", ON_TWO_NODES, spec, tmp_path / "proposals", str(files)))
    assert "killed a node" in said
    assert rows_of(tmp_path) == expected


def test_a_bucket_that_fails_often_costs_nothing_but_time(
    expected: list[dict[str, Any]], images: str, s3_server: Any, s3_uri: str, tmp_path: Path
) -> None:
    """A fifth of all requests gets a 503 and another fifth waits; images, proposals, manifests lie there."""
    # Uploaded: rclone does not see at once what is put into its folder behind its back.
    for path in Path(images).parent.rglob("*.*"):
        storage.upload(path, f"{s3_uri}/images/{path.relative_to(Path(images).parent)}")
    faults = Faults(refused=0.2, delayed=0.2)
    spec = write_spec(tmp_path, f"{s3_uri}/images", output_uri=f"{s3_uri}/proposals")
    with faulty_proxy(s3_server.environment["AWS_ENDPOINT_URL"], faults) as address:
        finish(start(spec, environment={**s3_server.environment, "AWS_ENDPOINT_URL": address}))
    assert faults.requests > 100
    assert faults.failures > 0.15 * faults.requests
    assert rows_of(s3_server.folder / s3_uri.removeprefix("s3://")) == expected
