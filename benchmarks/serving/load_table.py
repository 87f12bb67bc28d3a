"""Writes what clients saw under load as lines of text."""

from collections.abc import Iterator, Sequence

from benchmarks.serving.clients import LoadRun

_LINE = "{clients:>8}  {mode:<8}{answers:>9}{errors:>8}{p50:>9}{p90:>9}{p99:>9}{rate:>9}" + (
    "{prompt:>9}{written:>9}{thought:>9}"
)
_TITLES = _LINE.format(
    clients="clients",
    mode="mode",
    answers="answers",
    errors="errors",
    p50="p50 s",
    p90="p90 s",
    p99="p99 s",
    rate="req/s",
    prompt="read",
    written="written",
    thought="latent",
)


def load_lines(runs: Sequence[LoadRun]) -> Iterator[str]:
    """A line per mode and number of clients; tokens are sums over all agents of all answers."""
    if not runs:
        return
    yield _TITLES
    for run in runs:
        yield _LINE.format(
            clients=run.num_clients,
            mode=run.mode,
            answers=run.num_answers,
            errors=len(run.errors),
            p50=f"{run.percentile_s(50):.2f}",
            p90=f"{run.percentile_s(90):.2f}",
            p99=f"{run.percentile_s(99):.2f}",
            rate=f"{run.requests_per_s:.3f}",
            prompt=run.usage["prompt_tokens"],
            written=run.usage["completion_tokens"],
            thought=run.usage["latent_steps"],
        )
