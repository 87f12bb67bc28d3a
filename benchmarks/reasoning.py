"""Whole requests over the hierarchical pipeline, beside the plain loops. Does no torch work."""

from benchmarks.bench import NUM_REQUESTS, Bench, agreement, asking, durations
from benchmarks.measure import Bar, Figures, Measurement, interleave
from benchmarks.protocol import Limits

ANSWER_LIMITS = Limits(latent_steps=10, max_tokens=64)
MODE_LIMITS = Limits(latent_steps=10, max_tokens=128)

ENGINE = "engine"
LATENT = "engine, latent"
TEXT = "engine, text"
PLAIN = "plain loop"
NAIVE = "naive text"


def measure_one_request(bench: Bench) -> list[Measurement]:
    """One hierarchical request beside the plain loop over the same prompts."""
    runs = interleave(
        bench.num_rounds,
        {
            ENGINE: asking(bench.ours, "reason_latent", limits=ANSWER_LIMITS),
            PLAIN: asking(bench.transformers, "reason_latent", limits=ANSWER_LIMITS),
        },
    )
    return [
        bench.compare(
            "one_request",
            "hierarchical, 1 request",
            unit="s",
            ours=durations(ENGINE, runs[ENGINE]),
            baseline=durations(PLAIN, runs[PLAIN]),
            bar=Bar("<=", 0.6),
            agreement=agreement(runs[ENGINE], runs[PLAIN]),
            note="3 agents think 10 latent steps each, the judger writes 64 tokens",
        )
    ]


def measure_many_requests(bench: Bench) -> list[Measurement]:
    """16 hierarchical requests at once beside the plain loop, one after the other."""
    num_plain = bench.num_plain_requests
    ours = asking(bench.ours, "reason_latent", NUM_REQUESTS, limits=ANSWER_LIMITS)
    plain = asking(bench.transformers, "reason_latent", num_plain, limits=ANSWER_LIMITS)
    one = asking(bench.transformers, "reason_latent", limits=ANSWER_LIMITS)
    runs = interleave(
        bench.num_rounds,
        # One request is enough to warm the plain loop up.
        {ENGINE: ours, PLAIN: lambda index: (plain if index else one)(index)},
    )
    return [
        bench.compare(
            "many_requests",
            f"hierarchical, {NUM_REQUESTS} at once",
            unit="requests/s",
            ours=Figures(ENGINE, [NUM_REQUESTS / run.duration_s for run in runs[ENGINE]]),
            baseline=Figures(PLAIN, [num_plain / run.duration_s for run in runs[PLAIN]]),
            bar=Bar(">=", 5.0),
            agreement=agreement(runs[ENGINE], runs[PLAIN]),
            note=f"the plain loop ran {num_plain} of the {NUM_REQUESTS}, one after the other",
        )
    ]


def measure_modes(bench: Bench) -> list[Measurement]:
    """Mode latent beside mode text at equal limits, and both beside the naive text loop."""
    runs = interleave(
        bench.num_rounds,
        {
            LATENT: asking(bench.ours, "reason_latent", limits=MODE_LIMITS),
            TEXT: asking(bench.ours, "reason_text", limits=MODE_LIMITS),
            NAIVE: asking(bench.transformers, "reason_text", limits=MODE_LIMITS),
        },
    )
    tokens = {side: Figures(side, [r.num_tokens for r in runs[side]]) for side in runs}
    times = {side: durations(side, runs[side]) for side in runs}
    note = "4 agents, at most 128 tokens and 10 latent steps each"
    return [
        bench.compare(
            "modes_tokens",
            "latent mode, decoded tokens",
            unit="tokens",
            ours=tokens[LATENT],
            baseline=tokens[TEXT],
            bar=Bar("<=", 0.3),
            note=note,
        ),
        bench.compare(
            "modes_time",
            "latent mode, time",
            unit="s",
            ours=times[LATENT],
            baseline=times[TEXT],
            bar=Bar("<=", 0.35),
            note=note,
        ),
        bench.compare(
            "modes_time_naive",
            "latent mode, time",
            unit="s",
            ours=times[LATENT],
            baseline=times[NAIVE],
            note="the naive loop prefills and decodes one agent after the other",
        ),
        bench.compare(
            "text_mode",
            "text mode, time",
            unit="s",
            ours=times[TEXT],
            baseline=times[NAIVE],
            agreement=agreement(runs[TEXT], runs[NAIVE]),
            note="the same words on both sides",
        ),
    ]
