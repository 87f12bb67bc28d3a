"""Turns that tests take, and a check that an engine still takes them."""

from typing import Any

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn
from tests.engine.oracle import export_all, greedy

PROMPT = tuple(b"Once upon a time.")


def create_turn(
    prompt: str | tuple[int, ...] = PROMPT,
    *,
    latent_steps: int = 0,
    max_tokens: int = 0,
    **fields: Any,
) -> Turn:
    """Greedy, and exactly ``max_tokens`` long, unless ``sampling`` is given."""
    prompt_ids = tuple(prompt.encode()) if isinstance(prompt, str) else prompt
    fields.setdefault("sampling", greedy(max_tokens) if max_tokens else None)
    return Turn("agent", prompt_ids, num_latent_steps=latent_steps, **fields)


async def think(engine: Engine, *, latent_steps: int = 3, **fields: Any) -> ResidentMemory:
    turn = create_turn(latent_steps=latent_steps, keeps_memory=True, **fields)
    memory = (await engine.complete(turn)).memory
    assert memory is not None
    return memory


async def assert_answers(engine: Engine) -> None:
    """The engine is healthy: it still says what an engine says that was just opened."""
    done = await engine.complete(create_turn("Say something.", max_tokens=5))
    assert len(done.output_ids) == 5


async def contents_of(engine: Engine, memory: ResidentMemory) -> list[tuple[Any, Any]]:
    segments = memory.memory.segments
    return list(zip(segments, await export_all(engine, memory), strict=True))
