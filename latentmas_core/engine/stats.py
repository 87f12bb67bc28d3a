"""What an engine holds and has done: counts only."""

from dataclasses import dataclass, field

from latentmas_core.lora.cached_adapter import AdapterStats


@dataclass(frozen=True)
class EngineStats:
    """A snapshot between two steps. ``num_*_total`` count since the engine started."""

    num_running: int
    num_waiting: int
    num_memories: int
    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    block_size: int
    num_steps_total: int
    num_rows_total: int
    num_tokens_total: int
    num_latent_steps_total: int
    num_cached_tokens_total: int
    num_preemptions_total: int
    num_suspensions_total: int
    num_offloads_total: int
    adapters: AdapterStats = field(default_factory=AdapterStats)


@dataclass
class Counters:
    """The running totals behind ``EngineStats``."""

    num_steps: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_latent_steps: int = 0
    num_cached_tokens: int = 0
