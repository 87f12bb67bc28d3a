"""A request whose numbers overflow with its adapters is refused, whatever it was about to do."""

from pathlib import Path

import pytest

from latentmas_core.config import SamplingParams
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import AdapterError
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import make_adapter, mix_of
from tests.lora.speaking import PROMPT, speak
from tests.lora.test_overflow import strengthen

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def strong(tmp_path: Path, tiny_llama: Path) -> Path:
    """Its weights are finite, nothing that is computed with them is."""
    return strengthen(make_adapter(tmp_path / "strong", tiny_llama), 1e29)


async def assert_is_refused(
    engine: Engine, prompt: tuple[int, ...] = PROMPT, **fields: object
) -> None:
    turn = create_turn(prompt, adapters=mix_of(engine, "strong"), **fields)
    with pytest.raises(AdapterError, match=r"beyond what torch.float\d+ holds") as refused:
        await engine.complete(turn)
    assert refused.value.param == "adapters"
    assert engine.is_healthy


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 4},
        {"sampling": SamplingParams(max_tokens=4, temperature=0.7, ignore_eos=True)},
        {"latent_steps": 3, "keeps_memory": True},
        {"keeps_memory": True},
    ],
    ids=["greedy", "sampled", "thought", "prompt alone"],
)
async def test_turn_of_any_kind_is_refused_and_the_others_go_on(
    open_engine: OpenEngine, tiny_llama: Path, strong: Path, fields: dict[str, object]
) -> None:
    engine = open_engine(tiny_llama)
    await engine.load_adapter("strong", strong)
    before = await speak(engine)
    for _ in range(4):
        await assert_is_refused(engine, **fields)
    assert await speak(engine) == before


async def test_overflow_in_half_precision_is_refused(
    open_engine: OpenEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    engine = open_engine(tiny_llama, dtype="float16")
    folder = strengthen(make_adapter(tmp_path / "strong", tiny_llama), 1e4)
    await engine.load_adapter("strong", folder)
    await assert_is_refused(engine, max_tokens=4)


async def test_prefix_that_overflowed_is_found_by_nobody(
    open_engine: OpenEngine, tiny_llama: Path, strong: Path
) -> None:
    """A chunk of a prompt fails like its last row, and is not kept for the next request."""
    engine = open_engine(tiny_llama, max_num_batched_tokens=16)
    await engine.load_adapter("strong", strong)
    for _ in range(2):
        await assert_is_refused(engine, tuple(b"x" * 70), max_tokens=4)
    assert engine.stepper.blocks.num_cached == 0


async def test_counts_add_up_while_an_answer_holds_its_adapters(
    open_engine: OpenEngine, tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    engine = open_engine(tiny_llama)
    digest = (await engine.load_adapter("8", llama_adapters[8])).digest
    async with engine.holding([digest]), engine.holding([digest]):
        await engine.check_integrity()
        await engine.unload_adapter("8")
        await engine.check_integrity()
    await engine.check_integrity()
    assert engine.stepper.adapters._adapters == {}
