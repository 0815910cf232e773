"""Reads what a client sent: a picture and words, or a refusal in one sentence."""

import asyncio
import base64
import dataclasses
import hashlib
import io
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.types import Message, Receive

from fisa_model.config import PanopticConfig
from fisa_model.pictures import decode_image
from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.serving.limits import MAX_NAME_LENGTH, Limits
from fisa_platform.serving.schemas import SegmentBody, SegmentFields, mistake
from fisa_platform.serving.segmenter import Question

# The other formats that Pillow reads are rare as pictures, and some start programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FORM_FIELDS = ("image", *SegmentFields.model_fields)
_LIST_FIELDS = ("classes", "stuff")


async def read_question(request: Request, limits: Limits, defaults: PanopticConfig) -> Question:
    """What the request asks; `defaults` hold where it does not say.

    Raises:
        HTTPException: 4xx, what is wrong with it; 502, a picture's store does not answer.
    """
    fields, data = await _read_body(request, limits)
    vocabulary = read_vocabulary(fields, limits)
    panoptic = defaults
    if fields.object_threshold is not None:
        panoptic = dataclasses.replace(defaults, object_threshold=fields.object_threshold)
    if fields.image_uri is not None:
        data = await asyncio.to_thread(read_image_uri, fields.image_uri, limits)
    image = await asyncio.to_thread(read_pixels, data, limits)
    return Question(image, hashlib.sha256(data).hexdigest(), vocabulary, panoptic)


def read_vocabulary(fields: SegmentFields, limits: Limits) -> Vocabulary:
    """The classes that a request names."""
    names = [*fields.classes, *fields.stuff]
    if not names:
        raise HTTPException(422, "no class names were given; send one 'classes' or 'stuff' field a class")
    for name in names:
        if "\n" in name:
            raise HTTPException(422, f"class name {name[:40]!r} has a line break; send one field a class")
        if len(name) > MAX_NAME_LENGTH:
            raise HTTPException(
                422, f"class name {name[:40]!r}... has {len(name)} characters, more than {MAX_NAME_LENGTH}"
            )
    try:
        vocabulary = Vocabulary.from_names(fields.classes, stuff=fields.stuff)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    count = sum(len(category.prompt_names) for category in vocabulary.categories)
    if count > limits.max_class_names:
        raise HTTPException(
            422, f"{count} class names with their synonyms are more than {limits.max_class_names}; send fewer"
        )
    return vocabulary


def read_image_uri(uri: str, limits: Limits) -> bytes:
    """A picture's file that lies below an allowed prefix."""
    try:
        location = storage.make_absolute(uri)
    except ValueError as error:
        raise HTTPException(422, f"image_uri: {error}") from error
    prefixes = [storage.make_absolute(prefix) + "/" for prefix in limits.allowed_image_prefixes]
    # Some stores resolve "..", so that the prefix alone would not hold.
    if storage.leads_out(uri) or not location.startswith(tuple(prefixes)):
        raise HTTPException(403, f"image_uri {uri!r} is not below a prefix that this service may read")
    try:
        with storage.open_input(location) as file:
            data = file.read(limits.max_image_bytes + 1)
    except FileNotFoundError as error:
        raise HTTPException(404, f"image_uri {uri!r}: no such file; check the path") from error
    except ValueError as error:
        raise HTTPException(422, f"image_uri {uri!r} is no location that can be read: {error}") from error
    except OSError as error:
        raise HTTPException(502, f"image_uri cannot be read: {error}") from error
    return data


def read_pixels(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] of an encoded picture; its size is looked at before it is decoded."""
    if not data:
        raise HTTPException(422, "no picture was given; send its file as 'image'")
    if len(data) > limits.max_image_bytes:
        raise _too_many_bytes(limits)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        accepted = ", ".join(_FORMATS)
        raise HTTPException(422, f"the picture ({len(data)} bytes) is none of {accepted}") from error
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the picture has too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise HTTPException(422, f"the picture cannot be opened: {error}") from error
    if width * height > limits.max_image_pixels:
        most = f"{limits.max_image_pixels:,}"
        raise HTTPException(
            413, f"the picture has {width} x {height} pixels, more than {most}; scale it down"
        )
    try:
        return decode_image(data)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


async def _read_body(request: Request, limits: Limits) -> tuple[SegmentFields, bytes]:
    """The request's fields, and its picture, empty where it gives an `image_uri`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if int(request.headers.get("content-length", 0)) > limits.max_body_bytes:
        raise _too_many_bytes(limits)
    limited = Request(request.scope, _counting(request.receive, limits))
    if kind == "application/json":
        return _from_json(await limited.body())
    if kind == "multipart/form-data":
        # Many more fields than names are refused while they are read.
        async with limited.form(max_files=1, max_fields=limits.max_class_names + 10) as form:
            return await _from_form(form)
    raise HTTPException(
        415,
        f"content type {kind!r} is not accepted; send multipart/form-data or application/json",
    )


def _from_json(body: bytes) -> tuple[SegmentFields, bytes]:
    try:
        fields = SegmentBody.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, mistake(error.errors(), list(SegmentBody.model_fields))) from error
    if fields.image is None:
        return fields, b""
    try:
        # Lines of 76 characters are how `base64` writes it.
        return fields, base64.b64decode("".join(fields.image.split()), validate=True)
    except ValueError as error:
        raise HTTPException(422, f"image: not base64 ({error}); encode the file's bytes alone") from error


async def _from_form(form: FormData) -> tuple[SegmentFields, bytes]:
    image = form.get("image")
    for key, value in form.multi_items():
        if key != "image" and not isinstance(value, str):
            raise HTTPException(422, f"a file came as {key!r}; send the picture's file as 'image'")
    values: dict[str, Any] = {key: value for key, value in form.items() if key != "image"}
    values |= {key: form.getlist(key) for key in _LIST_FIELDS if key in form}
    try:
        fields = SegmentFields.model_validate(values)
    except ValidationError as error:
        raise HTTPException(422, mistake(error.errors(), _FORM_FIELDS)) from error
    if isinstance(image, str):
        raise HTTPException(422, "image: expected a file, got text; with curl write -F image=@picture.jpg")
    if (image is None) == (fields.image_uri is None):
        raise HTTPException(422, "exactly one of a file 'image' and 'image_uri' must be given")
    return fields, await image.read() if image is not None else b""


def _counting(receive: Receive, limits: Limits) -> Receive:
    """Stops a body that is longer than it may be, whatever its header says."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limits.max_body_bytes:
            raise _too_many_bytes(limits)
        return message

    return counted


def _too_many_bytes(limits: Limits) -> HTTPException:
    most = f"{limits.max_image_bytes:,}"
    return HTTPException(413, f"the picture has more than {most} bytes; send a smaller one")
