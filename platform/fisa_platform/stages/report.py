"""Stage `report`: a baseline and a trained run side by side, as one HTML page and one JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.manifest import Version
    from fisa_platform.report import Panel

HTML_NAME, JSON_NAME = "report.html", "result.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    images_uri: str
    """Table of the images that were evaluated on."""

    baseline_uri: str
    """What `evaluate` wrote for the frozen baseline."""

    fisa_uri: str
    """What `evaluate` wrote for the trained weights."""

    train_uri: str
    """What `train` wrote."""

    output_uri: str
    """Where report.html and result.json go."""

    title: str = "FISA"
    """Heading of the page."""

    pictures: int = 8
    """Images that are shown with ground truth, baseline and FISA."""

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures must be 0 or more, got {self.pictures}")


def run(config: ReportConfig, compute: Compute, context: StageContext) -> StageResult:
    """Read what the stages before wrote, and put it on one page."""
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform import storage
    from fisa_platform.manifest import open_version
    from fisa_platform.report import Report, System, render_report, words_of

    versions = {
        name: open_version(getattr(config, f"{name}_uri")) for name in ("images", "baseline", "fisa", "train")
    }
    result = make_result(versions)
    vocabulary = Vocabulary.from_json(versions["images"].manifest.vocabulary or [])
    trained = {category["name"] for category in versions["train"].manifest.vocabulary or []}
    seen_ids = {category.id for category in vocabulary.categories if category.name in trained}
    systems = [
        System(name="Frozen CLIP", scores=result["baseline"]),
        System(name="FISA", scores=result["fisa"]),
    ]
    page = Report(
        title=config.title,
        summary=_summary(versions),
        systems=systems,
        loss=_loss(versions["train"]),
        panels=_panels(versions, vocabulary, config.pictures),
        words=words_of(vocabulary, seen_ids),
        seconds=result["seconds"],
        provenance=_provenance(versions),
    )
    html_uri, json_uri = (storage.join(context.output.uri, name) for name in (HTML_NAME, JSON_NAME))
    storage.write_bytes(html_uri, render_report(page).encode())
    storage.write_json(json_uri, result)
    return StageResult(message=f"{comparison(result)}\n\nreport: {html_uri}\nresult: {json_uri}")


def make_result(versions: Mapping[str, Version]) -> dict[str, Any]:
    """Scores of both systems by subset, and the seconds of every stage that led to them."""
    from fisa_platform.manifest import find_version

    trained_on = {source.uri for source in versions["train"].manifest.inputs.values()}
    seconds: dict[str, float] = {}
    for name in ("train", "baseline", "fisa"):
        manifest = versions[name].manifest
        seconds[manifest.stage if name == "train" else f"{manifest.stage}-{name}"] = manifest.seconds
        for source in manifest.inputs.values():
            made = find_version(source.uri)
            if made is not None and made.manifest.stage in ("shard", "propose"):
                split = "train" if source.uri in trained_on else "val"
                seconds[f"{made.manifest.stage}-{split}"] = made.manifest.seconds
    scores = {name: versions[name].manifest.extra["scores"] for name in ("baseline", "fisa")}
    return {**scores, "seconds": dict(sorted(seconds.items()))}


def comparison(result: Mapping[str, Any]) -> str:
    """The table for the terminal."""
    lines = [f"{'':8}{'PQ':^24}{'mIoU':^24}", f"{'':8}" + f"{'frozen':>8}{'FISA':>8}{'':8}" * 2]
    for subset, before in result["baseline"].items():
        after = result["fisa"].get(subset, {})
        cells = ""
        for metric in ("PQ", "mIoU"):
            if metric in before and metric in after:
                # Of the numbers that stand beside it, so that a reader's own subtraction agrees.
                difference = round(after[metric], 1) - round(before[metric], 1)
                cells += f"{before[metric]:8.1f}{after[metric]:8.1f}{difference:+8.1f}"
            else:
                cells += f"{'-':>8}" * 3
        lines.append(f"{subset:8}{cells}")
    return "\n".join(lines)


def _loss(train: Version) -> list[tuple[int, float]]:
    from fisa_platform import storage
    from fisa_platform.stages.train import METRICS_NAME

    rows = [json.loads(line) for line in storage.read_bytes(train.file(METRICS_NAME)).splitlines()]
    return [(int(row["step"]), row["loss"]) for row in rows]


def _summary(versions: Mapping[str, Version]) -> str:
    train, images = versions["train"].manifest, versions["images"].manifest
    config = train.config
    return (
        f"{config['iterations']} iterations of {config['batches']['size']} images with "
        f"{len(train.vocabulary or [])} names, then evaluated on {images.rows} images with "
        f"{len(images.vocabulary or [])} names."
    )


def _panels(versions: Mapping[str, Version], vocabulary: Vocabulary, count: int) -> list[Panel]:
    from fisa_model.pictures import decode_image
    from fisa_platform.panoptic_png import decode_panoptic
    from fisa_platform.rendering import draw_segments, encode_picture
    from fisa_platform.report import Panel, Picture
    from fisa_platform.rows import TableRows
    from fisa_platform.schema import IMAGES, PREDICTIONS

    images = TableRows(versions["images"].files("images/", ".parquet"), IMAGES.names)
    predictions = {
        caption: TableRows(versions[name].files("predictions/", ".parquet"), PREDICTIONS.names)
        for caption, name in (("Frozen CLIP", "baseline"), ("FISA", "fisa"))
    }
    positions = {caption: table.positions() for caption, table in predictions.items()}
    panels = []
    for row in (images[i] for i in range(min(count, len(images)))):
        image = decode_image(row["image"])
        rows = {"Ground truth": row}
        for caption, table in predictions.items():
            position = positions[caption].get(row["image_id"])
            if position is not None:
                rows[caption] = table[position]
        pictures = [Picture(caption="Image", data=row["image"])]
        for caption, found in rows.items():
            ids = decode_panoptic(found["panoptic"])
            drawn = draw_segments(image, ids, found["segments_info"], vocabulary)
            pictures.append(Picture(caption=caption, data=encode_picture(drawn, "JPEG")))
        panels.append(Panel(title=row["file_name"], pictures=pictures))
    return panels


def _provenance(versions: Mapping[str, Version]) -> list[Any]:
    from fisa_platform.report import Provenance

    return [
        Provenance(
            title=f"{name}: {version.manifest.stage}",
            entries={
                "version": version.uri,
                "manifest": version.digest,
                "created": version.manifest.created_at,
                "code": version.manifest.git_commit or version.manifest.code_version,
                "config": json.dumps(version.manifest.config, ensure_ascii=False),
                **{
                    f"input {field}": f"{source.uri} {source.digest[:12]}"
                    for field, source in version.manifest.inputs.items()
                },
            },
        )
        for name, version in versions.items()
    ]
