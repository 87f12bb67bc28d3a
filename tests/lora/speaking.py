"""What the engine's tests with adapters ask for, and who says what to it."""

from latentmas_core.engine.engine import Engine
from tests.engine.turns import create_turn
from tests.lora.adapters import mix_of

PROMPT = tuple(b"Once upon a time there was")
NUM_TOKENS = 8


async def speak(
    engine: Engine, *names: str, num_tokens: int = NUM_TOKENS, **fields: object
) -> tuple[int, ...]:
    turn = create_turn(PROMPT, max_tokens=num_tokens, adapters=mix_of(engine, *names), **fields)
    return (await engine.complete(turn)).output_ids
