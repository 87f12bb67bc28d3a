"""How likely tokens of an answer were to the model: before temperature, top-k and top-p."""

from latentmas_core.config import FrozenModel


class TokenLogprob(FrozenModel):
    """A token and its log-probability."""

    token: str
    """Its text; a part of a character reads as U+FFFD."""
    logprob: float
    """The natural logarithm of its probability."""
    bytes: tuple[int, ...]
    """Its UTF-8, which may be a part of a character only."""


class AnswerToken(TokenLogprob):
    """A token of an answer, and others that were likely in its place."""

    top_logprobs: tuple[TokenLogprob, ...] = ()
    """The likeliest in its place, likeliest first."""
