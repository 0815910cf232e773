"""Scale of `shard` and `propose`: time and memory of a large table against those of a small one.

    uv run python tests/benchmarks/scale.py --small 5000 --large 20000

Images are scenes of the toy world, and proposals their ground truth, so that little but the platform is
timed. Each stage is a `fisa run` of its own. Memory is what a process holds for itself (resident less
shared), of the driver and of the largest of Ray's workers, when a quarter, a half, three quarters and all of
the images are written. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from measuring import machine

from fisa_platform import manifest
from fisa_platform.manifest import Version

REPOSITORY = Path(__file__).resolve().parents[2]
QUARTERS = (0.25, 0.5, 0.75, 1.0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", type=int, default=5_000, help="images of the small table")
    parser.add_argument("--large", type=int, default=20_000, help="images of the large table")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows-per-file", type=int, default=100, help="of both tables")
    return parser.parse_args()


def megabytes(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 1e6
    return 0.0


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Ray's workers, busy or idle."""
    found = []
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                found.append(process)
    return found


def measure(stage: str, config: dict[str, Any], count: int, workers: int) -> dict[str, Any]:
    """Run a stage; its seconds, and memory in MB at each quarter."""
    output = Path(config["output_uri"])
    spec = output.with_suffix(".yaml")
    compute = {"workers": {"min": workers, "max": workers}}
    spec.write_text(json.dumps({"stage": stage, "config": config, "compute": compute}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{REPOSITORY}/platform", str(REPOSITORY)])}
    started = time.perf_counter()
    job = subprocess.Popen([sys.executable, str(REPOSITORY / "platform"), "run", str(spec)], env=environment)
    driver = psutil.Process(job.pid)
    memory: list[dict[str, float]] = []
    while job.poll() is None:
        files = len(list(output.glob("*/run-*/[ip]*/*.parquet")))
        reached = files * config["rows_per_file"] >= QUARTERS[min(len(memory), 3)] * count
        if reached and len(memory) < len(QUARTERS):
            largest = max(map(megabytes, workers_of(driver)), default=0.0)
            memory.append({"driver": megabytes(driver), "worker": largest})
        time.sleep(0.2)
    if job.returncode:
        raise SystemExit(f"{stage} failed")
    version = manifest.open_version(str(output))
    return {
        "stage": stage,
        "images": count,
        "seconds": time.perf_counter() - started,
        "memory": memory,
        "files": count_files(version),
        "planned_files": -(-count // config["rows_per_file"]),
    }


def count_files(version: Version) -> int:
    return len(version.files("images/")) + len(version.files("proposals/"))


def main() -> None:
    arguments = parse_arguments()
    results = []
    with tempfile.TemporaryDirectory() as name:
        for count in (arguments.small, arguments.large):
            common = {"rows_per_file": arguments.rows_per_file}
            images = f"{name}/images-{count}"
            toyworld = {"scenes": count, "names": "all"}
            config = {"toyworld": toyworld, "output_uri": images, **common}
            results.append(measure("shard", config, count, arguments.workers))
            config = {"images_uri": images, "generator": "oracle", **common}
            config["output_uri"] = f"{name}/proposals-{count}"
            results.append(measure("propose", config, count, arguments.workers))
    print(f"{'':9}{'images':>7}{'seconds':>9}{'images/s':>10}{'files':>7}  MB at 25, 50, 75, 100 %")
    for result in results:
        rate = result["images"] / result["seconds"]
        for role in ("driver", "worker"):
            held = ", ".join(f"{quarter[role]:.0f}" for quarter in result["memory"])
            facts = f"{result['images']:7}{result['seconds']:9.1f}{rate:10.1f}{result['files']:7}"
            print(f"{result['stage']:9}{facts if role == 'driver' else '':33}  {role} {held}")
    growth = {
        stage: seconds_of(results, stage, arguments.large) / seconds_of(results, stage, arguments.small)
        for stage in ("shard", "propose")
    }
    share = arguments.large / arguments.small
    for stage, times in growth.items():
        print(f"{stage}: {share:g} times the images in {times:.2f} times the seconds")
    linear = {stage: times / share for stage, times in growth.items()}
    print(json.dumps({"linear": linear, "results": results, **vars(arguments), **machine("cpu")}))


def seconds_of(results: list[dict[str, Any]], stage: str, count: int) -> float:
    return next(r["seconds"] for r in results if r["stage"] == stage and r["images"] == count)


if __name__ == "__main__":
    main()
