"""Stage `label`: images and words in; COCO panoptic JSON and PNGs, a table, and overlays out."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fisa_model.config import PanopticConfig
from fisa_model.mask_generators import GeneratorName, check_generator
from fisa_model.vocabulary import Vocabulary
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.storage import check_apart

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from ray.data import Dataset

    from fisa_model.prediction import Prediction
    from fisa_platform.tables import Written

ROWS_PER_FILE = 512
"""Images of one file of predictions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    images_uri: str
    """Table of images written by `shard`, or a folder of images."""

    output_uri: str
    """Where the labels go."""

    classifier: ClassifierConfig
    """What names the masks."""

    things: tuple[str, ...] = ()
    """Countable classes, each a name or "name, synonym, synonym"."""

    stuff: tuple[str, ...] = ()
    """Classes without instances, in the same form."""

    vocabulary_uri: str | None = None
    """Table whose vocabulary is used where `things` and `stuff` are not given."""

    proposals_uri: str | None = None
    """Table of proposals for these images; none proposes here."""

    generator: GeneratorName = "felzenszwalb"
    """Mask generator where there is no table of proposals."""

    generator_weights: str | None = None
    """Folder or hub name of the generator's weights; none for a generator that has none."""

    panoptic: PanopticConfig = field(default_factory=PanopticConfig)

    limit: int | None = None
    """Label only the first images of the table, in its order; none labels all."""

    overlays: bool = True
    """Draw each result on its image."""

    batch_size: int = 8
    """Images of one forward pass."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        if bool(self.things or self.stuff) == (self.vocabulary_uri is not None):
            raise ValueError(
                "either things and stuff, or vocabulary_uri must be given; they say which classes to name"
            )
        if self.things or self.stuff:
            Vocabulary.from_names(self.things or [], stuff=self.stuff or [])  # refuses names that occur twice
        if self.proposals_uri is None:
            check_generator(self.generator, self.generator_weights)
        check_apart(self.output_uri, self.images_uri)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; leave it out for all images")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


def run(config: LabelConfig, compute: Compute, context: StageContext) -> StageResult:
    """Predict on a pool of actors, write the table and the overlays in tasks, then export COCO's form."""
    from fisa_platform import storage
    from fisa_platform.classifier import check_weights
    from fisa_platform.tables import WRITER, Loaded, Written, collect

    check_weights(config.classifier)
    vocabulary = read_vocabulary(config)
    output_uri = context.output.uri
    images, blocks = read_images(config, compute)
    labelled = images.map_batches(
        Loaded,
        fn_constructor_args=(partial(Labeller, config, vocabulary),),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=compute.actor_pool(blocks=blocks),
        **compute.ray_options(),
    )
    parts = collect(
        labelled.map_batches(
            partial(write_labels, output_uri=output_uri), batch_size=ROWS_PER_FILE, **WRITER
        ),
        context.progress,
    )
    written = Written.of(parts, "predictions")
    written.check(config.max_rejected_fraction)
    exported = _export(written, output_uri, vocabulary)
    return StageResult(
        rows=written.rows,
        vocabulary=vocabulary.to_json(),
        extra={"rejected": written.rejected},
        files=[*written.files, *exported],
        message=f"{written.summary}; COCO panoptic labels: {storage.join(output_uri, 'panoptic.json')}",
    )


def read_vocabulary(config: LabelConfig) -> Vocabulary:
    """The classes that the config names."""
    from fisa_platform.manifest import open_version

    if config.vocabulary_uri is None:
        return Vocabulary.from_names(config.things, stuff=config.stuff)
    categories = open_version(config.vocabulary_uri).manifest.vocabulary
    if categories is None:
        raise ValueError(f"{config.vocabulary_uri}: has no vocabulary; give things and stuff")
    return Vocabulary.from_json(categories)


def read_images(config: LabelConfig, compute: Compute) -> tuple[Dataset, int]:
    """Rows of the images table, from a folder failable ones, and the number of their blocks."""
    import ray.data

    from fisa_platform.manifest import find_version
    from fisa_platform.sources.index import read_image_folder
    from fisa_platform.stages.shard import load_images
    from fisa_platform.tables import image_places, read_rows, reader_options

    if find_version(config.images_uri) is not None:
        places = image_places(config.images_uri).sort_by("image_id").slice(0, config.limit)
        columns = ["image_id", "file_name", "image"]
        return read_rows(
            places,
            columns=columns,
            batch_size=config.batch_size,
            rows_per_file=ROWS_PER_FILE,
            compute=compute,
        )
    rows = read_image_folder(config.images_uri).failable().slice(0, config.limit)
    blocks = [rows.slice(k, config.batch_size) for k in range(0, rows.num_rows, config.batch_size)]
    images = ray.data.from_arrow(blocks).map_batches(
        load_images, batch_size=None, batch_format="pyarrow", **reader_options(compute)
    )
    return images, len(blocks)


class Labeller:
    """Loads generator and classifier once for each actor; rows of the images table in, predictions out."""

    def __init__(self, config: LabelConfig, vocabulary: Vocabulary) -> None:
        from fisa_model.device import default_device
        from fisa_model.mask_generators import load_mask_generator
        from fisa_platform.classifier import load_predictor
        from fisa_platform.rows import ProposalRows

        self.config = config
        self.vocabulary = vocabulary
        self.table = None if config.proposals_uri is None else ProposalRows(config.proposals_uri)
        generator = None
        if self.table is None:
            generator = load_mask_generator(
                config.generator, weights=config.generator_weights, device=default_device()
            )
        self.predictor = load_predictor(config.classifier, generator)
        self.class_tokens = self.predictor.encode_vocabulary(vocabulary)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_model.mask_generators import propose_masks
        from fisa_model.pictures import decode_image
        from fisa_platform.schema import LABELLED
        from fisa_platform.tables import failable_table

        done: list[dict[str, Any]] = []
        keys, images, proposals = [], [], []
        for row in batch.to_pylist():
            key = {"image_id": row["image_id"], "file_name": row["file_name"]}
            try:
                if row.get("reason"):
                    raise ValueError(row["reason"])
                image = decode_image(row["image"])
                if self.table is not None:
                    proposals.append(self.table[row["image_id"]])
            except ValueError as error:
                done.append({**key, "reason": str(error)})
                continue
            keys.append(key)
            images.append(image)
        if self.table is None:
            proposals = propose_masks(self.predictor.generator, images)
        predictions = self.predictor.predict(images, proposals, self.class_tokens)
        for key, image, prediction in zip(keys, images, predictions, strict=True):
            done.append({**key, **self._label(image, prediction)})
        return failable_table(LABELLED, done)

    def _label(self, image: NDArray[np.uint8], prediction: Prediction) -> dict[str, Any]:
        from fisa_platform.classifier import prediction_row
        from fisa_platform.panoptic_png import decode_panoptic
        from fisa_platform.rendering import draw_segments, encode_picture

        row = prediction_row(prediction, self.vocabulary, self.config.panoptic)
        overlay = None
        if self.config.overlays:
            ids = decode_panoptic(row["panoptic"])
            picture = draw_segments(image, ids, row["segments_info"], self.vocabulary)
            overlay = encode_picture(picture, "JPEG")
        return {**row, "overlay": overlay}


def write_labels(batch: pa.Table, *, output_uri: str) -> pa.Table:
    """Write a file of predictions, and the overlays beside it."""
    from fisa_platform import storage
    from fisa_platform.schema import PREDICTIONS
    from fisa_platform.tables import write_batch

    for row in batch.select(["file_name", "overlay"]).to_pylist():
        if row["overlay"] is not None:
            name = posixpath.splitext(row["file_name"])[0] + ".jpg"
            storage.write_bytes(storage.join(output_uri, "overlays", name), row["overlay"])
    return write_batch(batch, output_uri=output_uri, name="predictions", schema=PREDICTIONS)


def _export(written: Written, output_uri: str, vocabulary: Vocabulary) -> list[str]:
    """Write COCO's form, and name all files but the tables."""
    from fisa_platform import storage
    from fisa_platform.rendering import class_colour
    from fisa_platform.rows import TableRows
    from fisa_platform.schema import PREDICTIONS
    from fisa_platform.sources.coco import write_panoptic

    files = [uri for uri in written.files if "/predictions/" in uri]
    # panopticapi takes colours from the file, and COCO's own categories have groups.
    categories = [
        {**category, "supercategory": category["name"], "color": list(class_colour(index))}
        for index, category in enumerate(vocabulary.to_json())
    ]
    write_panoptic(output_uri, TableRows(files, PREDICTIONS.names), categories)
    # Their names come from the images, so a task that was run again wrote the same ones.
    paths = storage.list_files(output_uri)
    return [storage.join(output_uri, path) for path in paths if not path.endswith(".parquet")]
