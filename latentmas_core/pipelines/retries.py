"""How often a stage is tried again, and how an answer goes on that was begun twice."""

from dataclasses import dataclass

from latentmas_core.errors import EngineError
from latentmas_core.logprobs import AnswerToken


@dataclass(frozen=True)
class RetryPolicy:
    """How often a stage whose runner or memory was lost is tried, and the pause in between.

    The pause doubles with each attempt: whatever takes the place of what was lost has to start.
    """

    max_attempts: int = 1
    delay_s: float = 0.2

    def delay_after(self, attempt: int) -> float:
        """Seconds to wait behind attempt number ``attempt``, the first being 1."""
        return self.delay_s * 2.0 ** (attempt - 1)


class AnswerSoFar:
    """The text that the reader has got. A new attempt begins anew, the reader must not notice."""

    def __init__(self) -> None:
        self._given = ""
        self._said = ""
        self._num_given_tokens = 0
        self._num_said_tokens = 0

    def begin(self) -> None:
        """An attempt starts: what it says first was said before."""
        self._said = ""
        self._num_said_tokens = 0

    def add(self, text: str) -> str:
        """What of a new piece the reader has not got yet.

        Raises EngineError if it is not what was said before: logits may differ in the last bits
        with the batch, so at a near tie two attempts may part.
        """
        self._said += text
        shared = min(len(self._said), len(self._given))
        if self._said[:shared] != self._given[:shared]:
            raise _parted()
        new = self._said[len(self._given) :]
        self._given += new
        return new

    def add_tokens(self, tokens: tuple[AnswerToken, ...]) -> tuple[AnswerToken, ...]:
        """Those of a new piece that the reader has not got yet."""
        new = tokens[max(self._num_given_tokens - self._num_said_tokens, 0) :]
        self._num_said_tokens += len(tokens)
        self._num_given_tokens += len(new)
        return new

    def end(self) -> None:
        """An attempt is done. Raises EngineError if it said less than the reader has got."""
        if len(self._said) < len(self._given):
            raise _parted()


def _parted() -> EngineError:
    return EngineError(
        "the answer was interrupted when its replica was lost, and the second attempt chose other "
        "words. Send the request again."
    )
