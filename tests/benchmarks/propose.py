"""Overhead of `propose`: images per second over those of a bare loop in as many processes.

    uv run python tests/benchmarks/propose.py --workers 2 --runs 3

The generator is Felzenszwalb's, on generated scenes enlarged until it takes about as long as asked for. Both
sides start their processes and load the generator outside of the clock: of each run the rate is that between
a short and a long table, (long - short) / (seconds of long - seconds of short). The bare loop reads the same
Parquet files, decodes, proposes and encodes; it writes nothing. Runs are interleaved; figures are medians.
The last line is JSON.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from measuring import machine, print_rates
from scenes import ROWS_PER_FILE, write_images

from fisa_model.mask_generators import load_mask_generator
from fisa_model.pictures import decode_image
from fisa_platform import manifest
from fisa_platform.mask_codec import encode_proposals
from fisa_platform.runner import run_jobs
from fisa_platform.sources import toyworld
from fisa_platform.spec import job_from_data


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes of both sides")
    parser.add_argument("--short", type=int, default=100, help="images of the short table")
    parser.add_argument("--long", type=int, default=400, help="images of the long table")
    parser.add_argument("--milliseconds", type=float, default=100, help="about what the generator takes")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def find_side(milliseconds: float) -> int:
    """The side of pictures on which the generator takes about so long in one process."""
    generator = load_mask_generator("felzenszwalb")
    image = toyworld.draw_scene(0, 0, "all").image
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        generator(image)
        seconds.append(time.perf_counter() - started)
    factor = milliseconds / 1000 / statistics.median(seconds)
    return max(32, round(image.shape[0] * factor**0.5))


def propose(folder: Path, images_uri: str, workers: int) -> float:
    """Seconds of the stage."""
    output = Path(tempfile.mkdtemp(dir=folder))
    config = {
        "images_uri": images_uri,
        "generator": "felzenszwalb",
        "output_uri": str(output),
        "rows_per_file": ROWS_PER_FILE,
    }
    compute = {"workers": {"min": workers, "max": workers}}
    job = job_from_data({"stage": "propose", "config": config, "compute": compute})
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run_jobs({"propose": job}, lambda line: None)
    return time.perf_counter() - started


def work(files: list[str]) -> int:
    """What a worker does, in a plain loop."""
    generator = load_mask_generator("felzenszwalb")
    done = 0
    for file in files:
        for row in pq.read_table(file, columns=["image"]).to_pylist():
            image = decode_image(row["image"])
            encode_proposals(generator(image), *image.shape[:2])
            done += 1
    return done


def bare_loop(pool: Any, images_uri: str, workers: int) -> float:
    files = manifest.open_version(images_uri).files(prefix="images/")
    started = time.perf_counter()
    pool.map(work, [files[worker::workers] for worker in range(workers)], chunksize=1)
    return time.perf_counter() - started


def main() -> None:
    arguments = parse_arguments()
    side = find_side(arguments.milliseconds)
    rates: dict[str, list[float]] = {"bare loop": [], "propose": []}
    extra = arguments.long - arguments.short
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long = (write_images(folder, count, side) for count in (arguments.short, arguments.long))
        with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
            bare_loop(pool, short, arguments.workers)
            propose(folder, short, arguments.workers)
            for _ in range(arguments.runs):
                seconds = [bare_loop(pool, uri, arguments.workers) for uri in (short, long)]
                rates["bare loop"].append(extra / (seconds[1] - seconds[0]))
                seconds = [propose(folder, uri, arguments.workers) for uri in (short, long)]
                rates["propose"].append(extra / (seconds[1] - seconds[0]))
    print(f"pictures of {side} x {side}, {arguments.workers} workers")
    ratio = print_rates(rates, over="bare loop")
    print(json.dumps({"ratio": ratio, "rates": rates, "side": side, **vars(arguments), **machine("cpu")}))


if __name__ == "__main__":
    main()
