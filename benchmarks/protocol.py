"""What crosses the pipe between the benchmark and its sides. Plain data; knows no torch."""

from typing import NamedTuple


class SideSettings(NamedTuple):
    """What every side of a comparison has in common."""

    model_name: str
    dtype: str
    device: str
    num_threads: int
    has_prefix_cache: bool = False


class Limits(NamedTuple):
    """What is asked for: answers have exactly ``max_tokens`` tokens, sampled greedily."""

    latent_steps: int
    max_tokens: int


class Run(NamedTuple):
    """What one side did in one round.

    answer_ids: the token ids of every text that was written, in the order of the questions and, in
    text mode, of the agents. busy_s: the time without start-up, where a side starts up in a run.
    """

    duration_s: float
    answer_ids: list[list[int]]
    busy_s: float | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(ids) for ids in self.answer_ids)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.duration_s
