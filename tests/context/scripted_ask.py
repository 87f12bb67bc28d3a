"""A way of asking that answers from a script, and tools to call from it."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from latentmas_core.context.tools import Tool, ToolLoop, ToolRegistry
from latentmas_core.events import AgentStarted, AnswerDelta, AnswerDone, Event
from latentmas_core.logprobs import AnswerToken
from latentmas_core.request import ReasonRequest
from latentmas_core.result import AgentTrace, Result, StageStatus, StageTrace, Transfer, Usage

PIECE_CHARS = 4


def call_of(name: str, **arguments: object) -> str:
    """As a model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class ScriptedAsk:
    """Answers with one text after another, and keeps what it was asked."""

    def __init__(self, *answers: str, has_logprobs: bool = False) -> None:
        self._answers = list(answers)
        self._has_logprobs = has_logprobs
        self.requests: list[ReasonRequest] = []
        self.num_open = 0

    async def __call__(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.num_open += 1
        number = len(self.requests)
        text = self._answers[number - 1]
        try:
            yield AgentStarted("judger", "judger")
            for start in range(0, len(text), PIECE_CHARS):
                piece = text[start : start + PIECE_CHARS]
                token = AnswerToken(token=piece, logprob=-1.0, bytes=tuple(piece.encode()))
                yield AnswerDelta(piece, (token,) if self._has_logprobs else ())
            yield AnswerDone(result_of_round(number, text))
        finally:
            self.num_open -= 1


def result_of_round(number: int, text: str) -> Result:
    """What differs from round to round does so by powers of ten, so that sums show their terms."""
    weight = 10 ** (number - 1)
    agent = AgentTrace(
        name="judger",
        role=f"round {number}",
        adapter="base",
        mode="latent",
        latent_steps=weight,
        prompt_tokens=2 * weight,
        completion_tokens=3 * weight,
        started_at=0.0,
        latency_ms=1.0,
        text=text,
    )
    stage = StageTrace(
        name="judger",
        group="local",
        status=StageStatus.DONE,
        replica=None,
        started_ms=1.0,
        finished_ms=2.0,
        bytes_in=0,
        bytes_out=0,
        attempts=1,
    )
    return Result(
        id=f"reason-{number}",
        final_answer=text,
        pipeline="single",
        mode="latent",
        agents=(agent,),
        usage=Usage.of((agent,)),
        latency_ms=5.0,
        transfer=Transfer(stages=weight, hops=weight, num_bytes=weight),
        stages=(stage,),
        failed_agents=("critic",) if number == 2 else (),
        finish_reason="length" if number == 2 else "stop",
    )


async def events_of(
    ask: Callable[[ReasonRequest], AsyncGenerator[Event, None]],
    tools: Sequence[Tool],
    request: ReasonRequest | None = None,
    **options: object,
) -> list[Event]:
    """All events of a run with all of ``tools`` enabled."""
    request = request or ReasonRequest(question="What now?")
    loop = ToolLoop(ToolRegistry(tools), **options)
    return [event async for event in loop.run(ask, request, [tool.name for tool in tools])]


def said_in(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, AnswerDelta))


def ticks(step_s: float) -> Callable[[], float]:
    """A clock that goes on by ``step_s`` whenever it is read."""
    times: Iterator[float] = (number * step_s for number in range(10**9))
    return lambda: next(times)
