"""The pieces of one round's answer, less what is or may become the call of a tool."""

from collections.abc import Iterator

from latentmas_core.agents.tool_calls import HeldBack
from latentmas_core.events import AnswerDelta
from latentmas_core.logprobs import AnswerToken


class Voice:
    """``gap`` goes in front of the first piece. Tokens wait for the text that is held back."""

    def __init__(self, gap: str) -> None:
        self._gap = gap
        self._held = HeldBack()
        self._tokens: list[AnswerToken] = []

    def add(self, delta: AnswerDelta) -> Iterator[AnswerDelta]:
        """What can be shown now."""
        self._tokens += delta.logprobs
        text = self._held.add(delta.text)
        if text:
            yield self._give(text)

    def end(self, content: str, *, is_last: bool) -> Iterator[AnswerDelta]:
        """What of ``content``, the answer without its calls, was not shown yet. In the last round
        the tokens behind it come, too; in others they are those of calls."""
        text = self._held.rest(content)
        if text or (is_last and self._tokens):
            yield self._give(text)

    def _give(self, text: str) -> AnswerDelta:
        delta = AnswerDelta(self._gap + text if text else "", tuple(self._tokens))
        self._gap = ""
        self._tokens = []
        return delta
