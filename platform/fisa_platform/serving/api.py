"""The routes of the service, over anything that answers questions."""

import asyncio
import dataclasses
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fisa_model.config import PanopticConfig
from fisa_model.segmentation import Segmentation
from fisa_platform import __version__
from fisa_platform.mask_codec import run_lengths
from fisa_platform.panoptic_png import encode_panoptic
from fisa_platform.rendering import draw_segments, encode_picture
from fisa_platform.serving.limits import Limits
from fisa_platform.serving.page import PAGE_HEADERS, read_page
from fisa_platform.serving.requests import read_question
from fisa_platform.serving.schemas import (
    ModelInfo,
    Problem,
    RunLengths,
    Segment,
    SegmentAnswer,
    SegmentBody,
    SegmentFields,
    ServiceInfo,
    mistake,
)
from fisa_platform.serving.segmenter import Question

Answerer = Callable[[Question], Awaitable[Segmentation | ValueError]]
AnswerFormat = Literal["json", "overlay", "panoptic"]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 413, 415, 422, 502, 504)
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    **SegmentFields.model_json_schema(),
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        **SegmentFields.model_json_schema()["properties"],
                    },
                }
            },
            "application/json": {"schema": SegmentBody.model_json_schema()},
        },
    }
}


def build_api(
    answer: Answerer,
    *,
    model: ModelInfo,
    panoptic: PanopticConfig,
    limits: Limits,
    token_digest: bytes | None,
) -> FastAPI:
    """The HTTP interface.

    Args:
        answer: labels one picture.
        model: what answers, for `/v1/info`.
        panoptic: what holds where a request does not say.
        limits: what a request may ask for.
        token_digest: SHA-256 of the token that `/v1` asks for; None asks for none.
    """
    # FastAPI's own pages of documentation load scripts from elsewhere.
    api = FastAPI(title="FISA", version=__version__, docs_url=None, redoc_url=None)
    api.add_exception_handler(RequestValidationError, _one_sentence)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(read_page(), headers=PAGE_HEADERS)

    @api.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answers when the model is loaded."""
        return {"status": "ok"}

    checks = [Depends(_token_check(token_digest))]
    info = ServiceInfo(
        version=__version__,
        model=model,
        panoptic=dataclasses.asdict(panoptic.resolved),
        limits=dataclasses.asdict(limits),
    )
    api.include_router(_v1(answer, info, panoptic, limits), dependencies=checks)
    return api


def _v1(answer: Answerer, info: ServiceInfo, panoptic: PanopticConfig, limits: Limits) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.get("/info")
    def service_info() -> ServiceInfo:
        """The model, its defaults and the service's limits."""
        return info

    @routes.post("/segment", response_model=SegmentAnswer, responses=_PROBLEMS, openapi_extra=_BODY)
    async def segment(
        request: Request,
        answer_format: Annotated[
            AnswerFormat,
            Query(alias="format", description="`overlay` is a PNG to look at, `panoptic` one of ids."),
        ] = "json",
    ) -> SegmentAnswer | Response:
        """Labels one picture with the words of this request."""
        try:
            async with asyncio.timeout(limits.request_timeout_seconds):
                question = await read_question(request, limits, panoptic)
                found = await answer(question)
                if isinstance(found, ValueError):
                    raise HTTPException(422, str(found))
                return await asyncio.to_thread(_ENCODERS[answer_format], question, found)
        except TimeoutError as error:
            raise HTTPException(
                504,
                f"no answer within {limits.request_timeout_seconds:g} s; try again, or a smaller picture",
            ) from error

    return routes


def encode_answer(question: Question, found: Segmentation) -> SegmentAnswer:
    """The JSON of a labelled picture."""
    height, width = found.ids.shape
    return SegmentAnswer(
        height=height,
        width=width,
        segments=[
            Segment(
                id=segment.id,
                name=segment.name,
                is_thing=segment.is_thing,
                score=segment.score,
                area=segment.area,
                bbox=segment.bbox,
                # One mask at a time: all of a large picture would take a byte a pixel and segment.
                segmentation=_run_lengths(found.ids == segment.id),
            )
            for segment in found.segments
        ],
    )


def _run_lengths(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> RunLengths:
    (run,) = run_lengths(mask[None])
    height, width = run["size"]
    return RunLengths(size=(height, width), counts=run["counts"].decode("ascii"))


def _overlay(question: Question, found: Segmentation) -> Response:
    segments = [{"id": segment.id, "category_id": segment.category_id} for segment in found.segments]
    picture = draw_segments(question.image, found.ids, segments, question.vocabulary)
    return Response(encode_picture(picture), media_type="image/png")


def _panoptic_png(question: Question, found: Segmentation) -> Response:
    return Response(encode_panoptic(found.ids), media_type="image/png")


_ENCODERS: dict[AnswerFormat, Callable[[Question, Segmentation], SegmentAnswer | Response]] = {
    "json": encode_answer,
    "overlay": _overlay,
    "panoptic": _panoptic_png,
}


def _token_check(token_digest: bytes | None) -> Callable[..., None]:
    """A dependency that refuses a request without the token, before its body is read."""
    scheme = HTTPBearer(auto_error=False, description="What FISA_SERVE_TOKEN held when the service started.")

    def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        if token_digest is None:
            return
        given = hashlib.sha256(credentials.credentials.encode()).digest() if credentials else b""
        if not hmac.compare_digest(given, token_digest):
            reason = "this is not the service's token" if credentials else "this service asks for a token"
            raise HTTPException(
                401,
                f"{reason}; send the header 'Authorization: Bearer TOKEN'",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check


def _one_sentence(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": mistake(error.errors(), ())}, status_code=422)
