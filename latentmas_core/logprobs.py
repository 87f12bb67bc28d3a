"""How likely tokens of an answer were to the model: before temperature, top-k and top-p."""

from latentmas_core.config import FrozenModel


class TokenLogprob(FrozenModel):
    """A token and its log-probability. ``bytes``: a token may be a part of a character only."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class AnswerToken(TokenLogprob):
    """A token of an answer, and those that were likeliest in its place, likeliest first."""

    top_logprobs: tuple[TokenLogprob, ...] = ()
