"""Overhead of `label`: images per second over those of a bare loop in as many processes.

    uv run python tests/benchmarks/label.py --workers 2 --runs 3
    uv run python tests/benchmarks/label.py --model ViT-L-14-336-quickgelu --size 896 --side 640 \
        --workers 1 --cpus 8 --device cuda

Pictures are scenes of the toy world, enlarged, with Felzenszwalb's masks in a table, so that what is timed is
the classifier and the platform. Both sides start their processes and load the classifier outside of the
clock: of each run the rate is that between a short and a long table, (long - short) / (seconds of long -
seconds of short). The bare loop reads the same Parquet files, decodes, classifies, encodes and draws, one
batch after the other; it writes nothing. With a GPU `label` does that in a thread for each core of a worker,
so a ratio above 1 is what it gains. Runs are interleaved; figures are medians. The last line is JSON.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from measuring import machine, print_rates
from scenes import ROWS_PER_FILE, write_images

from fisa_model.config import TOY_CLIP
from fisa_platform import manifest
from fisa_platform.runner import run_jobs
from fisa_platform.spec import job_from_data
from fisa_platform.stages.label import LabelConfig, Labeller, read_vocabulary

WORDS = {
    "things": ["plain red circle", "striped blue star", "dotted yellow square"],
    "stuff": ["grass", "water", "sky"],
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=TOY_CLIP, help="an open_clip name, or `toy`; weights are random")
    parser.add_argument("--size", type=int, default=224, help="side of the classifier's input in pixels")
    parser.add_argument("--side", type=int, default=448, help="side of the pictures in pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes of both sides")
    parser.add_argument("--cpus", type=int, default=1, help="cores of a worker")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--short", type=int, default=60, help="images of the short table")
    parser.add_argument("--long", type=int, default=300, help="images of the long table")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def label_config(arguments: argparse.Namespace, folder: Path, images_uri: str) -> dict[str, Any]:
    proposals_uri = str(Path(images_uri).parent.with_name(f"proposals-{Path(images_uri).parent.name}"))
    return {
        "images_uri": images_uri,
        "proposals_uri": proposals_uri,
        "classifier": {"frozen": {"clip": {"model": arguments.model}, "image_size": arguments.size}},
        **WORDS,
        "panoptic": {"object_threshold": 0.0, "objectness": "none"},
        "output_uri": tempfile.mkdtemp(dir=folder),
        "rows_per_file": ROWS_PER_FILE,
    }


def propose(config: dict[str, Any]) -> None:
    """The table of proposals that `label` reads."""
    stage = {
        "images_uri": config["images_uri"],
        "generator": "felzenszwalb",
        "output_uri": config["proposals_uri"],
    }
    run_quietly({"stage": "propose", "config": stage, "compute": {"workers": {"max": 2}}})


def run_quietly(spec: dict[str, Any]) -> float:
    """Seconds of a stage."""
    job = job_from_data(spec)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run_jobs({spec["stage"]: job}, lambda line: None)
    return time.perf_counter() - started


def label(arguments: argparse.Namespace, folder: Path, images_uri: str) -> float:
    compute = {
        "workers": {"min": arguments.workers, "max": arguments.workers},
        "cpus_per_worker": arguments.cpus,
        "gpus_per_worker": float(arguments.device == "cuda"),
    }
    config = label_config(arguments, folder, images_uri)
    return run_quietly({"stage": "label", "config": config, "compute": compute})


def work(files: list[str], config: LabelConfig, cores: int) -> None:
    """What a worker does, in a plain loop."""
    torch.set_num_threads(cores)  # as Ray does for a worker
    labeller = Labeller(config, read_vocabulary(config))
    for file in files:
        rows = pq.read_table(file, columns=["image_id", "file_name", "image"])
        for start in range(0, rows.num_rows, config.batch_size):
            labeller(rows.slice(start, config.batch_size))


def bare_loop(arguments: argparse.Namespace, folder: Path, pool: Any, images_uri: str) -> float:
    config = job_from_data({"stage": "label", "config": label_config(arguments, folder, images_uri)}).config
    files = manifest.open_version(images_uri).files(prefix="images/")
    shares = [files[worker :: arguments.workers] for worker in range(arguments.workers)]
    started = time.perf_counter()
    pool.map(partial(work, config=config, cores=arguments.cpus), shares, chunksize=1)
    return time.perf_counter() - started


def main() -> None:
    arguments = parse_arguments()
    rates: dict[str, list[float]] = {"bare loop": [], "label": []}
    extra = arguments.long - arguments.short
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = [write_images(folder, count, arguments.side) for count in (arguments.short, arguments.long)]
        for images_uri in tables:
            propose(label_config(arguments, folder, images_uri))
        with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
            sides = {
                "bare loop": partial(bare_loop, arguments, folder, pool),
                "label": partial(label, arguments, folder),
            }
            for run in range(arguments.runs + 1):
                for side, seconds_of in sides.items():
                    short, long = (seconds_of(images_uri) for images_uri in tables)
                    if run:  # the first one warms up
                        rates[side].append(extra / (long - short))
    print(f"pictures of {arguments.side} x {arguments.side}, {arguments.workers} workers")
    ratio = print_rates(rates, over="bare loop")
    print(json.dumps({"ratio": ratio, "rates": rates, **vars(arguments), **machine(arguments.device)}))


if __name__ == "__main__":
    main()
