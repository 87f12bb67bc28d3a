"""``POST /runsync``: a job in RunPod's shape, answered as RunPod does for its workers.

What cannot be begun is refused like everywhere else here; a job that was begun and failed is an
answer of its own, with status FAILED, as RunPod's clients expect.
"""

import time
import uuid
from typing import Any, Literal, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from deployments.runpod_job import JobInput, Output, in_job_fields, output_of, outputs_of
from latentmas_core.config import FrozenModel
from latentmas_core.errors import LatentMASError
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result


class JobBody(FrozenModel):
    """RunPod's body. `webhook`, `policy` and `s3Config` are the platform's, and refused here."""

    input: JobInput
    """The job."""


class _JobAnswer(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """The job's own id."""
    executionTime: int = Field(ge=0)  # noqa: N815  # RunPod's spelling
    """Milliseconds from its beginning to its end."""


class JobCompleted(_JobAnswer):
    status: Literal["COMPLETED"] = "COMPLETED"
    """The job ended well."""
    output: list[dict[str, Any]]
    """One object, the result as `POST /v1/reason` has it; with `stream` every event of the run."""


class JobFailed(_JobAnswer):
    """A job that was not done, and why."""

    status: Literal["FAILED"] = "FAILED"
    """The job was begun and failed."""
    error: str
    """Why."""


class JobReasoner(Protocol):
    """What the route needs of the reasoner."""

    async def check(self, request: ReasonRequest) -> None: ...
    async def reason(self, request: ReasonRequest) -> Result: ...
    def stream(self, request: ReasonRequest) -> Any: ...


def add_runpod_route(app: FastAPI, reasoner: JobReasoner) -> None:
    """Let ``app`` answer the clients of RunPod's endpoints."""

    @app.post("/runsync", response_model=JobCompleted | JobFailed)
    async def runsync(body: JobBody) -> JSONResponse:
        """Run a job and wait for it, as RunPod's endpoints do."""
        with in_job_fields():
            request = body.input.as_request()
            await reasoner.check(request)
        answer = await _run(reasoner, body.input, request)
        return JSONResponse(answer.model_dump())


async def _run(
    reasoner: JobReasoner, job: JobInput, request: ReasonRequest
) -> JobCompleted | JobFailed:
    job_id, began_at = f"sync-{uuid.uuid4()}", time.perf_counter()
    try:
        output = await _output(reasoner, job, request)
    except LatentMASError as error:
        return JobFailed(id=job_id, executionTime=_ms_since(began_at), error=error.message)
    return JobCompleted(id=job_id, executionTime=_ms_since(began_at), output=output)


async def _output(reasoner: JobReasoner, job: JobInput, request: ReasonRequest) -> list[Output]:
    if not job.stream:  # then nobody has to send what happens on the way
        return [output_of(await reasoner.reason(request))]
    return [output async for output in outputs_of(reasoner.stream(request), job)]


def _ms_since(began_at: float) -> int:
    return round(1000.0 * (time.perf_counter() - began_at))
