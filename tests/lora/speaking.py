"""What the engine's tests with adapters ask for, and who says what to it."""

from pathlib import Path

from latentmas_core.engine.engine import Engine
from tests.engine.turns import create_turn
from tests.lora.adapters import mix_of

PROMPT = tuple(b"Once upon a time there was")
NUM_TOKENS = 8


async def load_all(engine: Engine, adapters: dict[int, Path]) -> list[str]:
    """Each by its rank; the names."""
    for rank, folder in adapters.items():
        await engine.load_adapter(str(rank), folder)
    return [str(rank) for rank in adapters]


async def speak(
    engine: Engine, *names: str, num_tokens: int = NUM_TOKENS, **fields: object
) -> tuple[int, ...]:
    turn = create_turn(PROMPT, max_tokens=num_tokens, adapters=mix_of(engine, *names), **fields)
    return (await engine.complete(turn)).output_ids
