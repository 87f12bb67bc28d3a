"""What is promised of latent agents beside agents that write, and whether a run kept it."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.quality.methods import Method
from benchmarks.quality.run_folder import AnswerRow
from benchmarks.quality.summary import Paired, by_key, pair_rows
from latentmas_core.request import Mode

MAX_OUTPUT_RATIO = 0.30  # tokens that are decoded: at least 70 % below
MAX_TIME_RATIO = 0.35


class Promise(NamedTuple):
    """``ratio``: what a latent method needed over what text agents did, on the same questions."""

    task: str
    method: str
    against: str
    what: str
    ratio: float
    limit: float

    @property
    def is_kept(self) -> bool:
        return self.ratio <= self.limit


def promises(answers: Sequence[AnswerRow]) -> list[Promise]:
    """Of each latent method beside text agents, those on adapters if it is and they were asked."""
    groups = by_key(answers)
    methods = {key: Method.parse(key.method) for key in groups}
    found = []
    for key, method in methods.items():
        texts = [k for k, m in methods.items() if k.task == key.task and m.mode is Mode.TEXT]
        if method.mode is not Mode.LATENT or not texts:
            continue
        like = [one for one in texts if methods[one].adapters is method.adapters]
        against = (like or texts)[0]
        pair = pair_rows(groups[against], groups[key], names=(against.method, key.method))
        found += [] if pair is None else _of_pair(pair)
    return found


def _of_pair(pair: Paired) -> list[Promise]:
    ratios = (
        ("decoded tokens", pair.output_ratio, MAX_OUTPUT_RATIO),
        ("time", pair.time_ratio, MAX_TIME_RATIO),
        ("time alone", pair.alone_ratio, MAX_TIME_RATIO),
    )
    return [
        Promise(pair.task, pair.second, pair.first, what, ratio, limit)
        for what, ratio, limit in ratios
        if ratio is not None
    ]
