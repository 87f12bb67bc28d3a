"""Methods that differ in the number of latent steps alone, as curves over it."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.quality.methods import Method
from benchmarks.quality.summary import Summary
from latentmas_core.request import Mode


class Curve(NamedTuple):
    """``points``: latent steps of each agent that thinks, and what came of them; few steps first.

    ``name`` is the methods' without their steps.
    """

    name: str
    points: Sequence[tuple[int, Summary]]


def curves(summaries: Sequence[Summary], *, default_steps: int) -> list[Curve]:
    """Of one task; those with two numbers of steps at least."""
    found: dict[str, dict[int, Summary]] = {}
    for one in summaries:
        method = Method.parse(one.method)
        if method.mode is Mode.LATENT:
            steps = default_steps if method.latent_steps is None else method.latent_steps
            found.setdefault(method.without_steps, {})[steps] = one
    return [
        Curve(name, sorted(points.items(), key=lambda point: point[0]))
        for name, points in found.items()
        if len(points) > 1
    ]
