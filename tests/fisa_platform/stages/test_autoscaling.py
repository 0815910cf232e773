"""Ray's autoscaler, with raylets of this machine as nodes: they come when there is work, and go after it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import clean_environment, finish, start

from fisa_platform import manifest
from fisa_platform.manifest import Version

pytestmark = pytest.mark.slow

SCENES, MOST_NODES = 600, 3
Run = Callable[..., Version]

# Counts nodes that have cores, from a process of its own, which is no driver of the job.
COUNT_NODES = textwrap.dedent("""
    import sys, time, ray
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
    # Ray itself prints.
    with open(sys.argv[2], "w") as counts:
        while True:
            alive = [node["Resources"].get("CPU", 0) > 0 for node in ray.nodes() if node["Alive"]]
            print(sum(alive), file=counts, flush=True)
            time.sleep(0.5)
""")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A cluster of a head without cores, that may grow by nodes of two cores."""
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

    port = 20_000 + os.getpid() % 10_000
    address = f"{get_node_ip_address()}:{port}"
    config = {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10,
        "provider": {
            # By its module: under its name Ray looks for a file that its wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "gcs_address": address,
        },
        # A name's own defaults would bring these.
        **{f"{nodes}setup_commands": [] for nodes in ("", "head_", "worker_")},
        **{f"{nodes}start_ray_commands": [] for nodes in ("head_", "worker_")},
        **{"initialization_commands": [], "cluster_synced_files": [], "file_mounts": {}},
        "auth": {},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 2, "object_store_memory": 200_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            },
        },
    }
    file = tmp_path / "autoscaler.json"
    file.write_text(json.dumps(config))
    ray = Path(sys.executable).with_name("ray")
    options = [f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--autoscaling-config={file}"]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", *options],
        env={
            **clean_environment(),
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        },
        stdout=(tmp_path / "head.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        yield address
    finally:
        children = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        psutil.wait_procs(children, timeout=30)
        for child in children:
            if child.is_running():
                child.kill()
        head.wait(timeout=30)


def test_nodes_come_with_the_work_and_go_after_it(run: Run, address: str, tmp_path: Path) -> None:
    images = run(
        "shard", toyworld={"scenes": SCENES, "names": "all"}, output_uri=str(tmp_path / "images")
    ).uri
    config = {
        "images_uri": images,
        "generator": "felzenszwalb",
        "rows_per_file": 32,
        "output_uri": str(tmp_path / "proposals"),
    }
    spec = tmp_path / "propose.yaml"
    compute = {"workers": {"min": 1, "max": 2 * MOST_NODES - 1}}
    spec.write_text(json.dumps({"stage": "propose", "config": config, "compute": compute}))
    count_file = tmp_path / "counts"
    counter = start("-c", COUNT_NODES, address, count_file)
    try:
        finish(start(spec, environment={"RAY_ADDRESS": address}))
        deadline = time.monotonic() + 90
        while (counts := read_counts(count_file))[-1] and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        counter.kill()
        counter.wait()
    assert counts[0] == 0
    assert max(counts) >= 2, counts
    assert counts[-1] == 0, counts
    assert manifest.open_version(str(tmp_path / "proposals")).manifest.rows == SCENES


def read_counts(file: Path) -> list[int]:
    """The whole lines of a file that is being written."""
    return [int(line) for line in file.read_text().split("\n")[:-1]]
