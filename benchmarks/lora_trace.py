"""The workload of S-LoRA's evaluation (Sheng et al. 2023), scaled down: who asks what, and when."""

from typing import NamedTuple

import numpy as np

SEED = 42


class Trace(NamedTuple):
    """What makes a trace.

    alpha: the exponent of the power law over adapters, 1 is uniform and less is more skewed. cv:
    the coefficient of variation of the gaps, 1 is Poisson and more is burstier. rate: requests a
    second. Lengths are uniform in [min_length, max_length).
    """

    num_adapters: int
    num_requests: int
    rate: float
    alpha: float = 1.0
    cv: float = 1.0
    min_length: int = 8
    max_length: int = 64


class TraceRequest(NamedTuple):
    """``at_s``: when it comes, in seconds from the start."""

    at_s: float
    adapter: int
    prompt_ids: tuple[int, ...]
    num_outputs: int


def make_requests(trace: Trace, vocab_size: int, *, seed: int = SEED) -> list[TraceRequest]:
    """Gaps from gamma(1 / cv^2, cv^2 / rate), adapters from int(power(alpha) * num_adapters)."""
    random = np.random.default_rng(seed)
    shape = 1.0 / trace.cv**2
    gaps = random.gamma(shape, trace.cv**2 / trace.rate, trace.num_requests)
    adapters = (random.power(trace.alpha, trace.num_requests) * trace.num_adapters).astype(int)
    lengths = random.integers(trace.min_length, trace.max_length, (trace.num_requests, 2))
    return [
        TraceRequest(
            at_s=float(at_s),
            adapter=int(adapter),
            prompt_ids=tuple(random.integers(0, vocab_size, num_inputs).tolist()),
            num_outputs=int(num_outputs),
        )
        for at_s, adapter, (num_inputs, num_outputs) in zip(
            np.cumsum(gaps), adapters, lengths, strict=True
        )
    ]
