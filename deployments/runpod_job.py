"""A job of RunPod: what its ``input`` may say, and what comes out of it, at a worker as at the
ingress. Knows neither RunPod's SDK nor HTTP."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from deployments.api.streaming import describe
from latentmas_core.config import FrozenModel, JsonBool
from latentmas_core.context.request import AskRequest
from latentmas_core.errors import ConfigError, LatentMASError
from latentmas_core.events import AnswerDone, Event
from latentmas_core.request import Question
from latentmas_core.result import Result
from latentmas_core.validation import validated

Output = dict[str, Any]

# Where a job has what a request calls so; fields that contradict each other are "value".
_PLACES = {"question": "input.prompt", "value": "input"}

if TYPE_CHECKING:
    _JobOptions = FrozenModel
else:
    _JobOptions = create_model(
        "_JobOptions",
        __base__=FrozenModel,
        **{
            name: (field.annotation, field)
            for name, field in AskRequest.model_fields.items()
            if name != "question"
        },
    )


class JobInput(_JobOptions):
    """What stands under `input`: `prompt` and `stream`, and the other fields of `POST /v1/reason`.

    With `stream` the output is every event of the run, as it happens; else the result alone.
    """

    prompt: Question
    """What is asked."""
    stream: JsonBool = False
    """Let the output be every event of the run instead of the result alone."""

    def as_request(self) -> AskRequest:
        """ConfigError for fields that contradict each other."""
        options = self.model_dump(exclude={"prompt", "stream"}, exclude_unset=True)
        return validated(AskRequest, {"question": self.prompt, **options})


def read_input(value: Any) -> JobInput:
    """ConfigError names the first wrong field."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"input is of type {type(value).__name__}; send an object with a prompt.", param="input"
        )
    return validated(JobInput, value)


@contextmanager
def in_job_fields() -> Iterator[None]:
    """Errors name the field of the job's ``input`` that is wrong."""
    try:
        yield
    except LatentMASError as error:
        if error.param is not None:
            error.param = _PLACES.get(error.param, f"input.{error.param}")
        raise


async def outputs_of(events: AsyncIterator[Event], job: JobInput) -> AsyncIterator[Output]:
    """One object per event or, without ``stream``, the result alone."""
    async for event in events:
        if job.stream:
            name, content = describe(event)
            yield {"event": name, **content}
        elif isinstance(event, AnswerDone):
            yield output_of(event.result)


def output_of(result: Result) -> Output:
    """As ``POST /v1/reason`` answers."""
    return result.model_dump(mode="json", by_alias=True)
