"""What a second ground truth costs a worker of `evaluate`: both in one pass, over a pass for each.

    uv run python tests/benchmarks/evaluate.py --model ViT-B-16 --size 448

Scenes of the toy world with Felzenszwalb's masks, decoded, classified over 57 classes and turned into what is
scored, as a worker does without Ray. Weights are random: they change no cost. Runs are interleaved; figures
are medians. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from measuring import interleave, machine

from fisa_model.config import CLIPConfig, FISAConfig
from fisa_platform import manifest
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.schema import IMAGES, PROPOSALS
from fisa_platform.sources import toyworld
from fisa_platform.stages.evaluate import EvaluateConfig
from fisa_platform.stages.evaluate_worker import Evaluator
from fisa_platform.stages.propose import ProposeConfig, Proposer, decode_images
from fisa_platform.stages.shard import load_images
from fisa_platform.tables import write_batch

VOCABULARY = toyworld.vocabulary("all")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="an open_clip name, or `toy`")
    parser.add_argument("--size", type=int, default=448, help="side of the classifier's input in pixels")
    parser.add_argument("--images", type=int, default=8, help="images of a batch")
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def write_tables(folder: Path, count: int) -> tuple[pa.Table, dict[str, str]]:
    """Rows of an images table, and where that and its proposals lie."""
    images = load_images(toyworld.index(seed=3, count=count, names="all").rows)
    (decoded,) = decode_images(images, rows_at_once=count, needs_truth=False)
    config = ProposeConfig(images_uri="", output_uri="", generator="felzenszwalb")
    tables = {"images": (images, IMAGES), "proposals": (Proposer(config, "cpu")(decoded), PROPOSALS)}
    uris = {}
    for name, (table, schema) in tables.items():
        pending = manifest.new_version(str(folder / name), "be" * 8)
        write_batch(table, output_uri=pending.uri, name=name, schema=schema)
        version = manifest.commit(
            pending,
            stage="test",
            config={},
            inputs={},
            seconds=0,
            rows=count,
            vocabulary=VOCABULARY.to_json(),
        )
        uris[f"{name}_uri"] = version.uri
    return images, uris


def evaluator(arguments: argparse.Namespace, uris: dict[str, str], truths: int) -> Evaluator:
    frozen = FISAConfig(clip=CLIPConfig(model=arguments.model), image_size=arguments.size)
    config = EvaluateConfig(
        **uris,
        output_uri="",
        classifier=ClassifierConfig(frozen=frozen),
        other_truth_uris={str(number): uris["images_uri"] for number in range(1, truths)},
    )
    return Evaluator(config, [VOCABULARY] * truths)


def main() -> None:
    arguments = parse_arguments()
    seconds: dict[str, list[float]] = {"one truth": [], "two truths": []}
    with tempfile.TemporaryDirectory() as folder:
        rows, uris = write_tables(Path(folder), arguments.images)
        workers = [evaluator(arguments, uris, truths) for truths in (1, 2)]
        functions = {name: partial(work, rows) for name, work in zip(seconds, workers, strict=True)}
        for name, value, _ in interleave(functions, arguments.runs, "cpu"):
            seconds[name].append(value)
    one, two = (statistics.median(values) for values in seconds.values())
    for name, values in seconds.items():
        print(f"{name:12}{statistics.median(values):8.2f} s  ({', '.join(f'{v:.2f}' for v in values)})")
    print(f"together over two passes {two / (2 * one):.3f}")
    result: dict[str, Any] = {"one_seconds": one, "two_seconds": two, "ratio": two / (2 * one)}
    print(json.dumps({**result, **vars(arguments), **machine("cpu")}))


if __name__ == "__main__":
    main()
