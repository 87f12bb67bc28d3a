"""Time that runs out: while nothing can be computed the engine does not sleep through it, and who
waits too long is refused."""

import asyncio
import time
from pathlib import Path
from typing import cast

import pytest

from latentmas_core.config import EngineConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import DeadlineError, EngineError, LatentMASError
from latentmas_core.lora.cache import Loader
from latentmas_core.system import LatentMASSystem
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import mix_of
from tests.lora.stage import HeldLoader, Stage

PATIENCE_S = 30.0


def hold_loads(engine: Engine) -> HeldLoader:
    loader = HeldLoader()
    engine.stepper.adapters._loader = cast(Loader, loader)
    return loader


@pytest.mark.parametrize(
    ("limit", "error"), [("deadline", EngineError), ("ends_at", DeadlineError)]
)
async def test_turn_that_waits_for_a_load_that_never_ends_is_ended_in_time(
    open_engine: OpenEngine,
    tiny_llama: Path,
    llama_adapters: dict[int, Path],
    limit: str,
    error: type[LatentMASError],
) -> None:
    engine = open_engine(tiny_llama)
    await engine.load_adapter("stuck", llama_adapters[8])
    loader = hold_loads(engine)
    end = time.monotonic() + 0.3
    turn = create_turn(adapters=mix_of(engine, "stuck"), max_tokens=1, **{limit: end})
    with pytest.raises(error, match=r"deadline|not done in the time"):
        await asyncio.wait_for(engine.complete(turn), PATIENCE_S)
    assert time.monotonic() >= end
    assert len(loader.pending) == 1


def test_agent_that_waits_longer_than_max_wait_s_is_refused(
    tiny_llama: Path, llama_adapters: dict[int, Path]
) -> None:
    config = EngineConfig(dtype="float32", kv_cache_bytes=2**26, num_threads=1)
    with LatentMASSystem(str(tiny_llama), device="cpu", engine_config=config) as system:
        system.add_default_agents()
        system.load_external_lora("stuck", llama_adapters[8])
        hold_loads(system._engine)
        options = {"adapters": {"judger": "stuck"}, "max_tokens": 1, "latent_steps": 1}
        with pytest.raises(EngineError, match="agent 'judger' waits, and would miss its deadline"):
            system.run("What is 2 + 2?", max_wait_s=0.3, **options)


def test_turn_that_waits_past_its_deadline_is_refused_and_leaves_nothing(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, max_loaded=1)
    for name in "ab":
        stage.load(name)
    running = stage.submit("a", max_tokens=30)
    stage.step()
    stage.loader.end_all()
    stage.step()
    late = stage.submit("b", max_tokens=1, deadline=time.monotonic() + 0.01)
    patient = stage.submit("b", max_tokens=1, deadline=time.monotonic() + 60)
    time.sleep(0.02)
    stage.step()
    assert isinstance(late.error, EngineError)
    assert "deadline" in late.error.message
    stage.run(running, patient)
    assert patient.done is not None
    stage.assert_empty()


def test_deadline_that_was_met_is_no_reason_to_refuse_a_turn_that_had_to_give_way(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, num_blocks=12)
    older = stage.submit(max_tokens=40, num_tokens=4)
    younger = stage.submit(
        max_tokens=40, num_tokens=4, first_token=90, deadline=time.monotonic() + 0.5
    )
    while not younger.sequence.num_preemptions:
        assert not younger.has_ended, younger.events[-1]
        stage.step()
    assert younger.sequence.output_ids, "it spoke in time"
    time.sleep(0.5)
    stage.run(older, younger)
    assert younger.done is not None, younger.error
