"""The service as a Ray Serve application."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from ray import serve

from fisa_model.config import PanopticConfig
from fisa_model.segmentation import Segmentation
from fisa_platform.compute import Compute
from fisa_platform.serving.api import build_api
from fisa_platform.serving.limits import Batching, Limits
from fisa_platform.serving.segmenter import Question, Segmenter

Loader = Callable[[], Segmenter]
"""Builds the model; called once in each replica."""


def build_app(
    load: Loader,
    *,
    panoptic: PanopticConfig,
    batching: Batching,
    limits: Limits,
    compute: Compute,
    token_digest: bytes | None,
) -> serve.Application:
    """The application with the replicas that `compute` asks for; the rest is passed on to `build_api`."""
    deployment = serve.deployment(
        name="segment",
        max_ongoing_requests=batching.max_ongoing_requests,
        max_queued_requests=limits.max_queued_requests,
        ray_actor_options=compute.ray_options(),
        # Weights that cannot be loaded will not load at the twentieth try either.
        max_constructor_retry_count=2,
        **_scaling(compute, batching),
    )
    service = deployment(serve.ingress()(SegmentService))
    return service.bind(load, panoptic, batching, limits, token_digest)


def _scaling(compute: Compute, batching: Batching) -> dict[str, Any]:
    # With no replica at all, the first visitor would wait for the model to load.
    least = max(compute.workers.min, 1)
    if least == compute.workers.max:
        return {"num_replicas": least}
    autoscaling = {
        "min_replicas": least,
        "max_replicas": compute.workers.max,
        "target_ongoing_requests": batching.size,
    }
    return {"autoscaling_config": autoscaling}


class SegmentService:
    """One replica: the routes, and the model that answers in batches."""

    def __init__(
        self,
        load: Loader,
        panoptic: PanopticConfig,
        batching: Batching,
        limits: Limits,
        token_digest: bytes | None,
    ) -> None:
        segmenter = load()

        @serve.batch(max_batch_size=batching.size, batch_wait_timeout_s=batching.wait_seconds)
        async def answer(questions: list[Question]) -> list[Segmentation | ValueError]:
            # In a thread, so that the next requests are read meanwhile.
            return await asyncio.to_thread(segmenter, questions)

        self._api = build_api(
            answer, model=segmenter.info, panoptic=panoptic, limits=limits, token_digest=token_digest
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api
