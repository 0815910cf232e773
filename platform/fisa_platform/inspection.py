"""What a version holds: in words, and as a contact sheet of its images with their masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fisa_model.pictures import decode_image
from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.manifest import Version, find_version
from fisa_platform.mask_codec import decode_proposals, decode_runs
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.rendering import contact_sheet, draw_masks, draw_segments, side_by_side
from fisa_platform.rows import TableRows
from fisa_platform.schema import IMAGES, PREDICTIONS, PROPOSALS, REFERENTS, REJECTED
from fisa_platform.sources.index import read_file

SHOWN = {"images": IMAGES, "proposals": PROPOSALS, "predictions": PREDICTIONS, "referents": REFERENTS}
"""Tables whose rows are drawn."""

COLUMNS, WIDTH = 4, 400
"""Of a contact sheet, in pixels; pairs of pictures are twice as wide."""

NAMES, REASONS = 60, 5
"""Class names and reasons of rejection that are listed."""


def describe(version: Version) -> str:
    """Rows, sizes, vocabulary and provenance."""
    manifest = version.manifest
    lines = [
        f"{version.uri}",
        f"stage     {manifest.stage}, {manifest.rows if manifest.rows is not None else 'no'} rows, "
        f"{manifest.seconds:.1f} s",
        f"written   {manifest.created_at} by version {manifest.code_version}, commit {manifest.git_commit}",
        f"digest    {version.digest}",
    ]
    lines += [f"from      {name}: {read.uri} ({read.digest[:16]})" for name, read in manifest.inputs.items()]
    lines += [f"files     {line}" for line in _file_lines(version)]
    if manifest.vocabulary is not None:
        names = Vocabulary.from_json(manifest.vocabulary).names
        rest = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
        lines.append(f"classes   {len(names)}: {'; '.join(names[:NAMES])}{rest}")
    lines += [f"rejected  {line}" for line in _rejected_lines(version)]
    lines += str(manifest.extra.get("message") or "").splitlines()
    return "\n".join(lines)


def show(version: Version, count: int) -> Image.Image:
    """A contact sheet of the first images by id: with ground truth, proposals, predictions or referents.

    Predictions that were scored stand beside the ground truth.


    Raises:
        ValueError: the version holds no table of these.
    """
    pictures = list(_pictures(version, count))
    if not pictures:
        raise ValueError(f"{version.uri}: has no images, proposals, predictions or referents to show")
    pairs = 2 if _has_truth(version) else 1
    return contact_sheet(pictures, columns=COLUMNS // pairs, width=WIDTH * pairs)


def _file_lines(version: Version) -> Iterator[str]:
    sizes: dict[str, list[int]] = defaultdict(list)
    rows: dict[str, int] = defaultdict(int)
    for file in version.manifest.files:
        folder = "/".join(file.path.split("/")[1:-1]) or file.path.split("/")[-1]
        sizes[folder].append(file.bytes)
        rows[folder] += file.rows or 0
    for folder, found in sorted(sizes.items()):
        counted = f", {rows[folder]} rows" if rows[folder] else ""
        yield f"{folder}: {len(found)} files, {sum(found) / 1e6:.1f} MB{counted}"
    for counted_folder in version.manifest.folders:
        name = counted_folder.path.partition("/")[2]
        yield f"{name}: {counted_folder.files} files, {counted_folder.bytes / 1e6:.1f} MB"


def _rejected_lines(version: Version) -> Iterator[str]:
    files = version.files(prefix="rejected/", suffix=".parquet")
    if files:
        rows = TableRows(files, REJECTED.names)
        for number in range(min(REASONS, len(rows))):
            row = rows[number]
            yield f"{row['file_name']}: {row['reason']}"
        if len(rows) > REASONS:
            yield f"and {len(rows) - REASONS} more"


def _pictures(version: Version, count: int) -> Iterator[tuple[str, Image.Image]]:
    for table in SHOWN:
        files = version.files(prefix=f"{table}/", suffix=".parquet")
        if files:
            break
    else:
        return
    rows = TableRows(files, SHOWN[table].names)
    source_of = _itself if table == "images" else _images_of(version)
    for number in range(min(count, len(rows))):
        row = rows[number]
        source = source_of(row)
        image = decode_image(source["image"])
        picture = _draw(image, row, version, table)
        if _has_truth(version):
            truth = _draw(image, source, version, "images")
            picture = side_by_side([("ground truth", truth), ("prediction", picture)])
        yield row["image_id"], picture


def _has_truth(version: Version) -> bool:
    return version.manifest.stage == "evaluate"


def _itself(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _images_of(version: Version) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """From a row of a version to that of its image, in the table that it was made from, or from a folder."""
    source = version.manifest.inputs.get("images_uri")
    if source is None:
        raise ValueError(f"{version.uri}: does not say which images it was made from")
    images = find_version(source.uri)
    if images is None and version.manifest.stage != "label":
        raise ValueError(f"{version.uri}: its images, {source.uri}, are gone; write them again")
    if images is None:
        return lambda row: {"image": read_file(storage.join(source.uri, row["file_name"]))}
    table = TableRows(images.files(prefix="images/", suffix=".parquet"), IMAGES.names)
    positions = table.positions()
    return lambda row: dict(table[positions[row["image_id"]]])


def _draw(image: Any, row: dict[str, Any], version: Version, table: str) -> Image.Image:
    if table == "proposals":
        return draw_masks(image, decode_proposals(row).mask_logits >= 0)
    if table == "referents":
        return _draw_runs(image, [(item["counts"], item["expression"]) for item in row["referents"]])
    # A table of an older release has no such column.
    if row.get("referred"):
        return _draw_runs(image, [(item["counts"], item["expressions"][0]) for item in row["referred"]])
    if row["panoptic"] is None:
        return Image.fromarray(image)
    assert version.manifest.vocabulary is not None
    vocabulary = Vocabulary.from_json(version.manifest.vocabulary)
    return draw_segments(image, decode_panoptic(row["panoptic"]), row["segments_info"], vocabulary)


def _draw_runs(image: NDArray[np.uint8], named: Sequence[tuple[bytes, str]]) -> Image.Image:
    """The image with masks as COCO's compressed run lengths, each under the first of its names."""
    names = dict(reversed(named))
    if not names:
        return Image.fromarray(image)
    height, width = image.shape[:2]
    return draw_masks(image, decode_runs(list(names), height, width), list(names.values()))
