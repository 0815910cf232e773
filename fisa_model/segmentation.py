"""A labelled picture: segments with names and boxes, and its COCO form."""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from fisa_model.postprocess import PanopticResult
from fisa_model.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class NamedSegment:
    id: int
    category_id: int
    name: str
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    """x, y, width, height in pixels."""

    is_thing: bool


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A labelled picture."""

    ids: NDArray[np.int32] = field(repr=False)
    """[H, W], the segment of every pixel; 0 is void."""

    segments: list[NamedSegment]

    def to_coco(self) -> tuple[bytes, list[dict[str, Any]]]:
        """COCO panoptic form: the PNG (id = R + 256 G + 65536 B) and its `segments_info`, with scores."""
        colours = np.stack([self.ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
        png = io.BytesIO()
        PIL.Image.fromarray(colours).save(png, format="PNG")
        info = [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": list(segment.bbox),
                "iscrowd": 0,
                "isthing": int(segment.is_thing),
                "score": segment.score,
            }
            for segment in self.segments
        ]
        return png.getvalue(), info


def name_segments(result: PanopticResult, vocabulary: Vocabulary) -> Segmentation:
    """Puts names and boxes to segments."""
    boxes = _boxes(result.ids, len(result.segments))
    segments = [
        NamedSegment(
            id=segment.id,
            category_id=vocabulary.categories[segment.class_index].id,
            name=vocabulary.categories[segment.class_index].name,
            score=segment.score,
            area=segment.area,
            bbox=boxes[segment.id],
            is_thing=segment.is_thing,
        )
        for segment in result.segments
    ]
    return Segmentation(result.ids, segments)


def _boxes(ids: NDArray[np.int32], count: int) -> dict[int, tuple[int, int, int, int]]:
    """x, y, width, height of segments 1..count, which all have pixels."""
    places = find_objects(ids, max_label=count)
    return {
        segment_id: (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for segment_id, (rows, columns) in enumerate(places, start=1)
    }
