"""An answer as it comes, in OpenAI's chunks. Calls of tools arrive whole, at its end."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from deployments.api.openai.completions import (
    answer_call,
    finish_reason_of,
    new_id,
    spoken_in,
    trace_of,
    usage_of,
)
from deployments.api.openai.to_request import Asked, in_chat_fields
from deployments.api.streaming import data_message, describe, stream_error
from latentmas_core.agents.tool_calls import HeldBack
from latentmas_core.events import (
    AgentStarted,
    AgentThought,
    AnswerDelta,
    AnswerDone,
    Event,
    Routed,
    StageStarted,
)
from latentmas_core.logprobs import AnswerToken
from latentmas_core.result import Result

END = "data: [DONE]\n\n"


async def begun(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events, once something came of the run: an error before that is raised here, while
    there is still a status to tell it with."""
    seen: list[Event] = []
    with in_chat_fields():
        async for event in events:
            seen.append(event)
            if not isinstance(event, Routed | StageStarted | AgentStarted):
                break
    return _from(seen, events)


async def _from(
    seen: list[Event], events: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    async with aclosing(events):
        for event in seen:
            yield event
        async for event in events:
            yield event


async def chunk_messages(
    events: AsyncGenerator[Event, None], asked: Asked
) -> AsyncGenerator[str, None]:
    """Server-sent events; an error comes as a message of its own, and [DONE] ends them anyway."""
    try:
        with in_chat_fields():
            async with aclosing(events):
                async for chunk in _chunks(events, asked):
                    yield data_message(chunk)
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader is told
        yield data_message(stream_error(error))
    yield END


async def _chunks(
    events: AsyncIterator[Event], asked: Asked
) -> AsyncGenerator[dict[str, Any], None]:
    answer = _Answer(asked)
    yield answer.chunk({"role": "assistant", "content": ""})
    async for event in events:
        if isinstance(event, AnswerDelta):
            for chunk in answer.add(event):
                yield chunk
        elif isinstance(event, Routed) or (isinstance(event, AgentThought) and event.lens):
            yield answer.told(event)
        elif isinstance(event, AnswerDone):
            for chunk in answer.end(event.result):
                yield chunk


class _Answer:
    """The chunks of one answer; what may become the call of a tool is held back."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._held = HeldBack()
        self._tokens: list[AnswerToken] = []
        self._common = {
            "id": new_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": asked.model,
        }

    def add(self, event: AnswerDelta) -> Iterator[dict[str, Any]]:
        self._tokens += event.logprobs
        text = self._held.add(event.text) if self._asked.tools else event.text
        if text:
            yield self.chunk({"content": text})

    def told(self, event: Event) -> dict[str, Any]:
        """A chunk that adds nothing to the answer: what happens on the way to it."""
        name, content = describe(event)
        return self.chunk({}) | {"latentmas": {"event": name} | content}

    def end(self, result: Result) -> Iterator[dict[str, Any]]:
        spoken = spoken_in(result, self._asked)
        rest = self._held.rest(spoken.content) if self._asked.tools else ""
        if rest:
            yield self.chunk({"content": rest})
        if spoken.calls:
            calls = [answer_call(call).model_dump() for call in spoken.calls]
            numbered = [{"index": i, **call} for i, call in enumerate(calls)]
            yield self.chunk({"tool_calls": numbered})
        last = self.chunk({}, finish_reason=finish_reason_of(result, spoken))
        yield last | {"latentmas": trace_of(result).model_dump(mode="json", by_alias=True)}
        if self._asked.has_usage:
            yield self._common | {"choices": [], "usage": usage_of(result).model_dump()}

    def chunk(self, delta: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": self._take_logprobs(),
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._asked.has_usage else {}
        return self._common | {"choices": [choice]} | usage

    def _take_logprobs(self) -> dict[str, Any] | None:
        """Of the tokens since the last chunk."""
        if not self._tokens:
            return None
        content = [token.model_dump(mode="json") for token in self._tokens]
        self._tokens = []
        return {"content": content, "refusal": None}
