"""Stage `label`: images and words in; COCO panoptic JSON and PNGs, a table, and overlays out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fisa_platform.classifier import ClassifierConfig, PanopticConfig
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.tables import Written


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

    generator: Literal["felzenszwalb", "mask2former"] = "felzenszwalb"
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
            raise ValueError("either things and stuff, or vocabulary_uri must be given; they say which classes to name")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; leave it out for all images")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


def run(config: LabelConfig, compute: Compute, context: StageContext) -> StageResult:
    """Predict on a pool of actors, write the table and the overlays in tasks, then export COCO's form."""
    from fisa_platform import storage
    from fisa_platform.schema import PREDICTIONS
    from fisa_platform.tables import Written

    vocabulary = read_vocabulary(config)
    parts = (
        read_images(config)
        .map_batches(
            Labeller,
            fn_constructor_args=(config, vocabulary),
            batch_size=config.batch_size,
            batch_format="pyarrow",
            compute=compute.actor_pool(),
            **compute.ray_options(),
        )
        .map_batches(
            write_labels,
            fn_kwargs={"output_uri": context.output.uri, "schema": PREDICTIONS},
            batch_size=512,
            batch_format="pyarrow",
        )
        .take_all()
    )
    written = Written.of(parts, "predictions")
    written.check(config.max_rejected_fraction)
    _export(written, context.output.uri, vocabulary)
    return StageResult(
        rows=written.rows,
        vocabulary=vocabulary.to_json(),
        extra={"rejected": written.rejected},
        message=f"{written.summary}; COCO panoptic labels: {storage.join(context.output.uri, 'panoptic.json')}",
    )


def read_vocabulary(config: LabelConfig) -> Vocabulary:
    """The classes that the config names."""
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.manifest import open_version

    if config.vocabulary_uri is None:
        return Vocabulary.from_names(config.things, stuff=config.stuff)
    categories = open_version(config.vocabulary_uri).manifest.vocabulary
    if categories is None:
        raise ValueError(f"{config.vocabulary_uri}: has no vocabulary; give things and stuff")
    return Vocabulary.from_json(categories)


def read_images(config: LabelConfig) -> Dataset:
    """Failable rows of the images table, from such a table or from a folder."""
    import pyarrow as pa
    import ray.data

    from fisa_platform.manifest import find_version
    from fisa_platform.sources.index import read_image_folder
    from fisa_platform.stages.shard import index_table, load_images
    from fisa_platform.tables import read_rows

    if find_version(config.images_uri) is not None:
        images = read_rows(config.images_uri, columns=["image_id", "file_name", "image"])
        # By id, so that the same images are labelled however the table was written.
        return images if config.limit is None else images.sort("image_id").limit(config.limit)
    index = index_table(read_image_folder(config.images_uri))
    index = index if config.limit is None else index.slice(0, config.limit)
    assert isinstance(index, pa.Table)
    return ray.data.from_arrow(index).map_batches(load_images, batch_size=16, batch_format="pyarrow")


class Labeller:
    """Loads generator and classifier once for each actor; failable rows of the images table in, predictions out."""

    def __init__(self, config: LabelConfig, vocabulary: Vocabulary) -> None:
        from fisa_model.mask_generators import load_mask_generator
        from fisa_platform.classifier import load_predictor
        from fisa_platform.compute import default_device
        from fisa_platform.rows import ProposalRows

        self.config = config
        self.vocabulary = vocabulary
        self.table = ProposalRows(config.proposals_uri) if config.proposals_uri else None
        self.generator = (
            None
            if self.table
            else load_mask_generator(config.generator, weights=config.generator_weights, device=default_device())
        )
        self.predictor = load_predictor(config.classifier)
        self.class_tokens = self.predictor.encode_vocabulary(vocabulary)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_platform.images import decode_image
        from fisa_platform.schema import LABELLED
        from fisa_platform.tables import failable_table

        done: list[dict[str, Any]] = []
        rows, images, proposals = [], [], []
        for row in batch.to_pylist():
            key = {"image_id": row["image_id"], "file_name": row["file_name"]}
            try:
                if row.get("reason"):
                    raise ValueError(row["reason"])
                image = decode_image(row["image"])
                masks = self.table[row["image_id"]] if self.table is not None else self.generator(image)
            except ValueError as error:
                done.append({**key, "reason": str(error)})
                continue
            rows.append(key)
            images.append(image)
            proposals.append(masks)
        predictions = self.predictor.predict(images, proposals, self.class_tokens)
        for key, image, prediction in zip(rows, images, predictions, strict=True):
            done.append({**key, **self._label(image, prediction)})
        return failable_table(LABELLED, done)

    def _label(self, image: Any, prediction: Any) -> dict[str, Any]:
        from fisa_platform.classifier import prediction_row
        from fisa_platform.panoptic_png import decode_panoptic
        from fisa_platform.rendering import draw_segments, encode_picture

        row = prediction_row(prediction, self.vocabulary, self.config.panoptic)
        overlay = None
        if self.config.overlays:
            ids = decode_panoptic(row["panoptic"])
            overlay = encode_picture(draw_segments(image, ids, row["segments_info"], self.vocabulary), "JPEG")
        return {**row, "overlay": overlay}


def write_labels(batch: pa.Table, *, output_uri: str, schema: pa.Schema) -> pa.Table:
    """Write a file of predictions, and the overlays beside it."""
    import posixpath

    from fisa_platform import storage
    from fisa_platform.tables import write_batch

    for row in batch.select(["file_name", "overlay"]).to_pylist():
        if row["overlay"] is not None:
            name = posixpath.splitext(row["file_name"])[0] + ".jpg"
            storage.write_bytes(storage.join(output_uri, "overlays", name), row["overlay"])
    return write_batch(batch, output_uri=output_uri, name="predictions", schema=schema)


def _export(written: Written, output_uri: str, vocabulary: Vocabulary) -> None:
    from fisa_platform.rows import TableRows
    from fisa_platform.schema import PREDICTIONS
    from fisa_platform.sources.coco import write_panoptic

    files = [uri for uri in written.files if "/predictions/" in uri]
    write_panoptic(output_uri, TableRows(files, PREDICTIONS.names), vocabulary)
