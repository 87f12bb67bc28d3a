"""Numbers that overflow with an adapter harm nobody beside or behind its requests."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from latentmas_core.config import SamplingParams
from latentmas_core.engine import fused
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import AdapterError
from latentmas_core.lora.checkpoint import WEIGHTS_FILE
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import make_adapter, mix_of
from tests.lora.speaking import speak

PROMPTS = (tuple(b"Once upon a time there was"), tuple(b"Hello"), tuple(b"x" * 70))
NUM_TOKENS = 10
# Of finite weights: with one the keys are too large for a product, with the other none is finite.
STRENGTHS = (1e12, 1e29)


def strengthen(folder: Path, factor: float, *, side: str = "lora_B") -> Path:
    """Multiplies one of the two matrices everywhere."""
    path = folder / WEIGHTS_FILE
    weights = load_file(path)
    save_file({name: x * factor if side in name else x for name, x in weights.items()}, path)
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(fused, "can_fuse", lambda _: False)
    return str(request.param)


async def say(engine: Engine, prompt: tuple[int, ...], **fields: object) -> tuple[int, ...]:
    turn = create_turn(prompt, **({"max_tokens": NUM_TOKENS} | fields))
    return (await engine.complete(turn)).output_ids


async def say_all(engine: Engine) -> list[tuple[int, ...]]:
    return list(await asyncio.gather(*(say(engine, prompt) for prompt in PROMPTS)))


async def disturb(engine: Engine, **fields: object) -> None:
    """A turn with the adapter; it may be refused as the adapter's fault, and not otherwise."""
    with suppress(AdapterError):
        await say(engine, tuple(b"short"), adapters=mix_of(engine, "strong"), **fields)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    ("family", "decoder"),
    [("tiny_llama", "fused"), ("tiny_llama", "plain"), ("tiny_qwen3", "fused")],
    indirect=["decoder"],
)
async def test_base_answers_stay_beside_and_behind_numbers_that_overflow(
    open_engine: OpenEngine,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    family: str,
    decoder: str,
    strength: float,
) -> None:
    model: Path = request.getfixturevalue(family)
    engine = open_engine(model, num_blocks=400, has_prefix_cache=False)
    strong = strengthen(make_adapter(tmp_path / "strong", model), strength)
    await engine.load_adapter("strong", strong)
    alone = [await say(engine, prompt) for prompt in PROMPTS]
    is_over = asyncio.Event()

    async def keep_disturbing() -> None:
        while not is_over.is_set():
            await disturb(engine, max_tokens=3)

    disturbing = [asyncio.create_task(keep_disturbing()) for _ in range(2)]
    for _ in range(3):
        assert await say_all(engine) == alone
    is_over.set()
    await asyncio.gather(*disturbing)
    assert await say_all(engine) == alone
    assert engine.is_healthy


async def test_numbers_that_overflow_in_half_precision_harm_nobody_else(
    open_engine: OpenEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    engine = open_engine(tiny_llama, dtype="float16", has_prefix_cache=False)
    folder = strengthen(make_adapter(tmp_path / "strong", tiny_llama), 1e4)
    await engine.load_adapter("strong", folder)
    alone = await say_all(engine)
    _, *answers = await asyncio.gather(
        disturb(engine), *(say(engine, prompt) for prompt in PROMPTS)
    )
    assert answers == alone
    assert await say_all(engine) == alone


async def test_sampled_overflow_ends_no_step_and_no_replica(
    open_engine: OpenEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    engine = open_engine(tiny_llama)
    folder = strengthen(make_adapter(tmp_path / "strong", tiny_llama), 1e29)
    await engine.load_adapter("strong", folder)
    sampling = SamplingParams(max_tokens=4, temperature=0.7, ignore_eos=True)
    writing = asyncio.create_task(speak(engine, num_tokens=60))
    for _ in range(5):
        await disturb(engine, sampling=sampling)
        assert engine.is_healthy
    assert len(await writing) == 60


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1e6), ("float32", 1e35)])
@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
async def test_weights_that_the_engine_cannot_hold_are_refused_with_the_limit(
    open_engine: OpenEngine, tiny_llama: Path, tmp_path: Path, dtype: str, factor: float, side: str
) -> None:
    engine = open_engine(tiny_llama, dtype=dtype)
    folder = strengthen(make_adapter(tmp_path / "strong", tiny_llama), factor, side=side)
    with pytest.raises(AdapterError, match=f"is the most that is computed with in torch.{dtype}"):
        await engine.load_adapter("strong", folder)
    assert await engine.adapters() == []
