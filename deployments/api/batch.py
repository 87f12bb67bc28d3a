"""``POST /v1/batch``: many questions at once, answered together by the groups' engines.

All are checked before any is begun; from then on each has its own answer or error. Each counts for
the limits of its caller.
"""

import asyncio
import logging
import time
from typing import Annotated, Any, Protocol

from fastapi import FastAPI
from pydantic import BeforeValidator, Field

from deployments.access import current_caller
from deployments.api.errors import (
    INTERNAL,
    INTERNAL_MESSAGE,
    ErrorDetail,
    ErrorKind,
    error_detail,
    kind_of,
)
from deployments.api.limits import CallerLimits
from latentmas_core.config import FrozenModel
from latentmas_core.context.request import AskRequest
from latentmas_core.errors import LatentMASError
from latentmas_core.request import Question, ReasonRequest
from latentmas_core.result import Result

logger = logging.getLogger(__name__)

MAX_BATCH = 64


def _as_request(value: Any) -> Any:
    return {"question": value} if isinstance(value, str) else value


class BatchBody(FrozenModel):
    """Questions, or whole requests with the fields of ``POST /v1/reason`` but ``stream``."""

    requests: Annotated[
        tuple[
            Annotated[
                AskRequest,
                BeforeValidator(_as_request, json_schema_input_type=Question | AskRequest),
            ],
            ...,
        ],
        Field(min_length=1, max_length=MAX_BATCH),
    ]
    """Each a question, or an object with the fields of `POST /v1/reason` but `stream`."""


class BatchItem(FrozenModel):
    """What became of one request: a result or an error."""

    result: Result | None = None
    """As `POST /v1/reason` answers; null if it failed."""
    error: ErrorDetail | None = None
    """Why it failed; null if it did not."""


class BatchAnswer(FrozenModel):
    """In the order of the requests."""

    results: tuple[BatchItem, ...]
    """In the order of the requests."""
    latency_ms: float
    """Until the last one was there."""


class Answerer(Protocol):
    """What the route needs of the application."""

    async def check(self, request: ReasonRequest) -> None: ...
    async def reason(self, request: ReasonRequest) -> Result: ...


def add_batch_route(app: FastAPI, answerer: Answerer, limits: CallerLimits) -> None:
    """``POST /v1/batch``."""

    @app.post("/v1/batch", response_model=BatchAnswer)
    async def batch(body: BatchBody) -> BatchAnswer:
        """Ask several questions at the same time. If one of them cannot be meant, none is begun."""
        began_at = time.perf_counter()
        for index, request in enumerate(body.requests):
            await _check(answerer, index, request)
        with limits.counted_as(len(body.requests), current_caller()):
            results = await asyncio.gather(*(_answer(answerer, one) for one in body.requests))
        latency_ms = 1000.0 * (time.perf_counter() - began_at)
        return BatchAnswer(results=tuple(results), latency_ms=latency_ms)


async def _check(answerer: Answerer, index: int, request: ReasonRequest) -> None:
    try:
        await answerer.check(request)
    except LatentMASError as error:
        place = f"requests.{index}"
        param = f"{place}.{error.param}" if error.param else place
        raise type(error)(f"{place}: {error.message}", param=param) from None


async def _answer(answerer: Answerer, request: ReasonRequest) -> BatchItem:
    try:
        return BatchItem(result=await answerer.reason(request))
    except LatentMASError as error:
        return _failed(kind_of(error), error.message, error.param)
    except Exception:
        logger.exception("a request of a batch failed")
        return _failed(INTERNAL, INTERNAL_MESSAGE, None)


def _failed(kind: ErrorKind, message: str, param: str | None) -> BatchItem:
    return BatchItem(error=error_detail(kind, message, param))
