"""The JSON that crosses the wire."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fisa_platform.decode import shown, unknown_field


class SegmentFields(BaseModel):
    """What a form says beside its picture."""

    model_config = ConfigDict(extra="forbid")

    classes: list[str] = Field(default=[], description='Countable classes, each "name" or "name, synonym".')
    stuff: list[str] = Field(default=[], description="Classes without instances, in the same form.")
    object_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Segments that score no higher stay void."
    )
    image_uri: str | None = Field(
        default=None, min_length=1, description="A picture that the service fetches, below an allowed prefix."
    )


class SegmentBody(SegmentFields):
    """What a JSON request says: exactly one of `image` and `image_uri`."""

    image: str | None = Field(default=None, description="The picture's file in base64.")

    @model_validator(mode="after")
    def _one_picture(self) -> Self:
        if (self.image is None) == (self.image_uri is None):
            raise ValueError("exactly one of image and image_uri must be given")
        return self


class RunLengths(BaseModel):
    """A mask as COCO's compressed run lengths; `pycocotools.mask.decode` takes it as it is."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str


class Segment(BaseModel):
    id: int
    name: str
    is_thing: bool
    score: float
    area: int = Field(description="Pixels.")
    bbox: tuple[int, int, int, int] = Field(description="Left, top, width and height in pixels.")
    segmentation: RunLengths


class SegmentAnswer(BaseModel):
    """Segments that do not overlap; a pixel in none of them is void."""

    height: int
    width: int
    segments: list[Segment]


class ModelInfo(BaseModel):
    """What answers."""

    classifier: dict[str, Any]
    clip_digest: str = Field(description="SHA-256 over the weights of the CLIP.")
    image_size: int = Field(description="Side in pixels of the square that the model sees.")
    templates: list[str]
    generator: str
    device: str


class ServiceInfo(BaseModel):
    version: str
    model: ModelInfo
    panoptic: dict[str, Any]
    limits: dict[str, Any]


class Problem(BaseModel):
    """Every refusal."""

    detail: str = Field(description="One sentence.")


def mistake(errors: Sequence[Mapping[str, Any]], accepted: Sequence[str]) -> str:
    """The first of pydantic's errors as one sentence; `accepted` are the names of the fields."""
    first = errors[0]
    place, message = ".".join(map(str, first["loc"])), str(first["msg"])
    if first["type"] == "extra_forbidden":
        return f"{place}: {unknown_field(first['input'], place, accepted)}"
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {message.removeprefix('Invalid JSON: ')}"
    message = message.removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}, got {shown(first['input'])}" if place else message
