"""Stage `label`: images and words in; COCO panoptic JSON and PNGs, a table, and overlays out."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fisa_model.class_lists import ClassListName, load_class_list
from fisa_model.config import PanopticConfig, check_choices
from fisa_model.mask_generators import GeneratorName, Precision, check_generator
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

    class_list: ClassListName | None = None
    """In place of `things` and `stuff`: the classes of a public benchmark, with their ids."""

    vocabulary_uri: str | None = None
    """In place of these: a table whose vocabulary is used."""

    proposals_uri: str | None = None
    """Table of proposals for these images; none proposes here."""

    generator: GeneratorName = "felzenszwalb"
    """Mask generator where there is no table of proposals."""

    generator_weights: str | None = None
    """Folder or hub name of the generator's weights; none is the hub's Swin-B of COCO for Mask2Former, and
    right for a generator that has none."""

    generator_size: tuple[int, int] | None = None
    """Test size of a generator that is a network, [shorter side, longest side] in pixels; none is its own."""

    generator_precision: Precision = "fp32"
    """Arithmetic of a network that generates; `bf16` is faster and moves the borders of masks a little."""

    panoptic: PanopticConfig = field(default_factory=PanopticConfig)

    limit: int | None = None
    """Label only the first images of the table, in its order; none labels all."""

    instances_json: bool = True
    """Also write `instances.json`, which annotation tools import: COCO's form with a mask for each segment,
    about 0.5 KB."""

    semantic_maps: bool = False
    """Also write `semantic/`, label maps as mmsegmentation, detectron2 and `shard_semantic.yaml` read them:
    PNGs of the classes' places, from 0 on, and 255 where there is no class; of 16 bits, and 65535, where
    there are more than 255 classes."""

    overlays: bool = True
    """Draw each result on its image."""

    batch_size: int = 8
    """Images of one forward pass."""

    rows_per_file: int = 512
    """Images of one Parquet file; what a killed run had in hand is labelled again."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        check_choices(self)
        given = {
            "things and stuff": bool(self.things or self.stuff),
            "class_list": self.class_list is not None,
            "vocabulary_uri": self.vocabulary_uri is not None,
        }
        if sum(given.values()) != 1:
            got = " and ".join(name for name, is_given in given.items() if is_given) or "none"
            raise ValueError(
                f"exactly one of {', '.join(given)} must be given, got {got}; they say which classes to name"
            )
        if self.things or self.stuff:
            Vocabulary.from_names(self.things or [], stuff=self.stuff or [])  # refuses names that occur twice
        if self.proposals_uri is not None and self.generator_size is not None:
            raise ValueError(
                f"generator_size is {list(self.generator_size)}, but with proposals_uri no generator runs; "
                "leave one of them out"
            )
        if self.proposals_uri is not None and self.generator_precision != "fp32":
            raise ValueError(
                f"generator_precision is {self.generator_precision!r}, but with proposals_uri no generator "
                "runs; leave one of them out"
            )
        if self.proposals_uri is None:
            check_generator(
                self.generator, self.generator_weights, self.generator_size, self.generator_precision
            )
        check_apart(self.output_uri, self.images_uri)
        for name in ("batch_size", "rows_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; leave it out for all images")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


def run(config: LabelConfig, compute: Compute, context: StageContext) -> StageResult:
    """Predict on a pool of actors, write tables and pictures in tasks; go on where a run was killed."""
    from fisa_platform.classifier import check_weights
    from fisa_platform.resume import check_once, earlier_work
    from fisa_platform.segment_summary import summarise_segments
    from fisa_platform.stages import label_output
    from fisa_platform.stages.shard import write_rejected
    from fisa_platform.tables import WRITER, Loaded, Written, collect

    check_weights(config.classifier)
    vocabulary = read_vocabulary(config)
    output_uri = context.output.uri
    maps_of = vocabulary if config.semantic_maps else None
    earlier = earlier_work(context.output, label_output.TABLE)
    if earlier.ids:
        context.progress(f"{len(earlier.ids)} images were done by a run that did not end")
        label_output.take_over(
            earlier.parts,
            output_uri,
            overlays=config.overlays,
            maps_of=maps_of,
            workers=compute.workers.max,
        )
    source = read_source(config, compute, earlier.ids)
    labelled = source.rows.map_batches(
        Loaded,
        fn_constructor_args=(partial(Labeller, config, vocabulary),),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=compute.actor_pool(blocks=source.blocks),
        **compute.ray_options(),
    )
    write = partial(label_output.write_labels, output_uri=output_uri, maps_of=maps_of)
    parts = labelled.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    left = len(source.image_ids) - len(earlier.ids)
    done = [*earlier.parts, *collect(parts, left, context.progress)]
    check_once(source.image_ids, [part["uri"] for part in done])
    written = Written.of([*done, *write_rejected(source.rejected, output_uri)], label_output.TABLE)
    written.check(config.max_rejected_fraction)
    files = sorted(part["uri"] for part in done if part["table"] == label_output.TABLE)
    found = summarise_segments(files, vocabulary) or (
        "nothing was found: name what is in the pictures, or lower config.panoptic.object_threshold"
    )
    json_uris = label_output.write_json(output_uri, files, vocabulary, instances=config.instances_json)
    return StageResult(
        rows=written.rows,
        vocabulary=vocabulary.to_json(),
        extra={"rejected": written.rejected},
        files=[*written.files, *json_uris],
        folders=[
            label_output.PNGS,
            *([label_output.MAPS] if config.semantic_maps else []),
            *([label_output.OVERLAYS] if config.overlays else []),
        ],
        message=f"{written.summary}; {found}; COCO panoptic labels: {json_uris[0]}",
    )


def read_vocabulary(config: LabelConfig) -> Vocabulary:
    """The classes that the config names."""
    from fisa_platform.manifest import open_version

    if config.class_list is not None:
        return load_class_list(config.class_list)
    if config.vocabulary_uri is None:
        return Vocabulary.from_names(config.things, stuff=config.stuff)
    categories = open_version(config.vocabulary_uri).manifest.vocabulary
    if categories is None:
        raise ValueError(f"{config.vocabulary_uri}: has no vocabulary; give things and stuff")
    return Vocabulary.from_json(categories)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The images of a job."""

    rows: Dataset
    """Failable rows of the images table, of images that are not done."""

    blocks: int
    """Of these rows."""

    image_ids: pa.ChunkedArray
    """All, done or not."""

    rejected: pa.Table
    """Of `schema.REJECTED`: files that are images by their names, and cannot be used."""


def read_source(config: LabelConfig, compute: Compute, done: Collection[str]) -> Source:
    """A table of images, or a folder of them."""
    import ray.data

    from fisa_platform.manifest import find_version
    from fisa_platform.resume import without
    from fisa_platform.schema import REJECTED
    from fisa_platform.sources.index import read_image_folder
    from fisa_platform.stages.label_output import check_names
    from fisa_platform.stages.shard import load_images
    from fisa_platform.tables import image_places, read_rows, reader_options

    version = find_version(config.images_uri)
    if version is not None:
        places = image_places(config.images_uri).sort_by("image_id").slice(0, config.limit)
        names = version.dataset("images/").to_table(columns=["file_name"])["file_name"]
        check_names(names.to_pylist(), overlays=config.overlays)
        rows, count = read_rows(
            without(places, done),
            columns=["image_id", "file_name", "image"],
            batch_size=config.batch_size,
            rows_per_file=config.rows_per_file,
            compute=compute,
        )
        nothing = REJECTED.empty_table()
        return Source(rows=rows, blocks=count, image_ids=places["image_id"], rejected=nothing)
    index = read_image_folder(config.images_uri)
    found = index.rows.slice(0, config.limit)
    check_names(found["file_name"].to_pylist(), overlays=config.overlays)
    left, size = without(found, done), config.batch_size
    blocks = [left.slice(start, size) for start in range(0, left.num_rows, size)] or [left]
    rows = ray.data.from_arrow(blocks).map_batches(
        load_images, batch_size=None, batch_format="pyarrow", **reader_options(compute)
    )
    # With a limit, the first images that can be used were asked for.
    rejected = index.rejected if config.limit is None else index.rejected.slice(0, 0)
    return Source(rows=rows, blocks=len(blocks), image_ids=found["image_id"], rejected=rejected)


class Labeller:
    """Loads generator and classifier once for each actor; rows of the images table in, predictions out."""

    def __init__(self, config: LabelConfig, vocabulary: Vocabulary) -> None:
        from fisa_model.device import default_device
        from fisa_model.mask_generators import load_mask_generator
        from fisa_platform.classifier import load_predictor
        from fisa_platform.rows import ProposalRows

        self.config = config
        self.vocabulary = vocabulary
        self.in_model = threading.Lock()
        self.table = None if config.proposals_uri is None else ProposalRows(config.proposals_uri)
        generator = None
        if self.table is None:
            generator = load_mask_generator(
                config.generator,
                weights=config.generator_weights,
                size=config.generator_size,
                device=default_device(),
                precision=config.generator_precision,
            )
        self.predictor = load_predictor(config.classifier, generator)
        self.class_tokens = self.predictor.encode_vocabulary(vocabulary)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_model.device import own_stream
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
        with self.in_model:
            predictions = self.predictor.predict(images, proposals, self.class_tokens)
        proposals = []  # of as many batches as there are threads, some GB of memory
        with own_stream(self.predictor.model.device):
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
