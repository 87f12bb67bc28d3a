"""A system that knows the answers it gives, and counts what it was asked."""

from typing import Any

from latentmas_core.errors import ContextLengthError
from latentmas_core.request import Mode
from latentmas_core.result import AgentTrace, Result, Usage

TOKENS = {"single": 20, "text": 80, "latent": 20}


class KilledError(Exception):
    """Stands for whatever ends a process."""


class ScriptedSystem:
    """Answers ``answers[mode, first line of the prompt]``, or 0; ``fails_at`` does not fit."""

    def __init__(
        self, answers: dict[tuple[str, str], str], *, fails_at: str = "", dies_after: int = 1000
    ) -> None:
        self._answers = answers
        self._fails_at = fails_at
        self._num_left = dies_after
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    async def arun(self, question: str, *, mode: str, **options: Any) -> Result:
        if self._num_left == 0:
            raise KilledError
        self._num_left -= 1
        self.asked.append((mode, question, options))
        if self._fails_at and self._fails_at in question:
            raise ContextLengthError("the prompt has 9 tokens; 8 fit. Shorten it.")
        answer = self._answers.get((mode, question.splitlines()[0]), "0")
        trace = AgentTrace(
            name="judger",
            role="decides",
            adapter="base",
            mode=Mode(mode),
            latent_steps=30 if mode == "latent" else 0,
            prompt_tokens=50,
            completion_tokens=TOKENS[mode],
            started_at=0.0,
            latency_ms=float(TOKENS[mode]),
            text=answer,
        )
        return Result(
            id="r",
            final_answer=answer,
            pipeline="hierarchical",
            mode=Mode(mode),
            agents=(trace,),
            usage=Usage.of((trace,)),
            latency_ms=float(TOKENS[mode]),
        )
