"""Steps over two cards that are not there: nothing is computed out of tensors of both.

The numbers are those of the CPU in one shard, the code is that of cards.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.config import EngineConfig, SamplingParams
from latentmas_core.engine import fused
from latentmas_core.engine.attention import (
    AttentionBatch,
    GatheredRows,
    SequenceRows,
    prepare_batch,
)
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.fused import Rotation
from latentmas_core.engine.kv_pool import num_block_bytes
from latentmas_core.engine.model_loader import LoadedModel, load_model
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence
from latentmas_core.engine.shards import bring_inputs, place
from latentmas_core.engine.stepper import Stepper
from latentmas_core.engine.turn import TurnDone
from latentmas_core.errors import EngineError
from latentmas_core.latent.memory import MergeRule, merge
from latentmas_core.latent.segment import SegmentTensors
from latentmas_core.lora.mix import AdapterMix, AdapterUse
from tests.engine.engines import CPU
from tests.engine.factories import create_pool
from tests.engine.oracle import TOLERANCE
from tests.engine.pretended import PretendedCards
from tests.engine.turns import create_turn
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter

CARDS = [torch.device("cuda", 0), torch.device("cuda", 1)]
NUM_BLOCKS = 600
BLOCK_SIZE = 4


@pytest.fixture(params=["tiny_llama", "tiny_qwen2", "tiny_qwen3"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


class Bench:
    """The engine's thread without a thread: turns are computed one after the other.

    Used as a context manager: the threads that load adapters end with it.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        block_bytes = num_block_bytes(loaded.shape, BLOCK_SIZE, torch.float32)
        config = EngineConfig(
            model_name=loaded.name, block_size=BLOCK_SIZE, kv_cache_bytes=NUM_BLOCKS * block_bytes
        )
        self._posted: list[Any] = []
        self._tokenizer = loaded.tokenizer.backend_tokenizer
        self.stepper = Stepper(config, loaded, post=self._posted.append)
        self.stepper.loader._is_pinned = False  # there is no card to copy to by itself

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.stepper.close(EngineError("the test is over."))

    def complete(self, *turns: Any) -> list[TurnDone]:
        """All of them in the same steps."""
        events: list[list[Any]] = [[] for _ in turns]
        for turn, seen in zip(turns, events, strict=True):
            self.stepper.add(
                Sequence(
                    turn,
                    sink=seen.append,
                    detokenizer=Detokenizer(self._tokenizer, ()),
                    prefix_keys=[],
                )
            )
        while self.stepper.has_work:
            self._run_posted()
            self.stepper.step()
        ends = [seen[-1] for seen in events]
        for end in ends:
            assert isinstance(end, TurnDone), end
        return ends

    def load_adapter(self, folder: Path) -> AdapterMix:
        spec, packed = self.stepper.loader.read("one", folder)
        self.stepper.register(spec, packed)
        return AdapterMix((AdapterUse(spec.digest, 1.0),))

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.pop(0)()


def spread(loaded: LoadedModel, cards: PretendedCards) -> LoadedModel:
    """The model of the CPU as if it had been read to two cards."""
    model: Any = loaded.model
    shards, device_map = place(loaded.name, model.config, CARDS, dtype=torch.float32)
    for path, device in device_map.items():
        module = model.get_submodule(path)
        cards.put([*module.parameters(), *module.buffers()], device)
    bring_inputs(model.model.layers, shards)
    return replace(loaded, shards=shards)


class Outcome(NamedTuple):
    """What agents said, and what the last memory holds."""

    said: list[tuple[int, ...]]
    contents: list[SegmentTensors]


def play(bench: Bench, adapter: Path) -> Outcome:
    """Experts think at once, with and without an adapter; their thoughts are merged, moved out of
    the pool, and read again by two judges at once, one of whom draws his tokens."""
    memories = bench.stepper.memories
    mix = bench.load_adapter(adapter)
    experts = bench.complete(
        create_turn("You are a doctor.", latent_steps=3, keeps_memory=True),
        create_turn("You know numbers.", latent_steps=2, keeps_memory=True, adapters=mix),
    )
    thoughts = [memory_of(expert) for expert in experts]
    merged = memories.assemble(
        merge([thought.memory for thought in thoughts], MergeRule.CONSECUTIVE), thoughts
    )
    assert merged.block_table is not None
    assert memories.make_room(NUM_BLOCKS - bench.stepper.adapters.num_blocks)
    assert merged.staged is not None, "it was to be moved out"
    draws = SamplingParams(max_tokens=6, temperature=0.8, top_p=0.9, seed=3, ignore_eos=True)
    judges = bench.complete(
        create_turn("Judge.", memory=merged, latent_steps=2, max_tokens=8, keeps_memory=True),
        create_turn("Judge!", memory=merged, sampling=draws, adapters=mix),
    )
    judged = memory_of(judges[0])
    contents = memories.export(judged, judged.memory.segments)
    for memory in (*thoughts, merged, judged):
        memories.release(memory)
    bench.stepper.check_integrity()
    return Outcome([judge.output_ids for judge in judges], contents)


def memory_of(done: TurnDone) -> ResidentMemory:
    assert done.memory is not None
    return done.memory


def load(model: Path) -> LoadedModel:
    return load_model(str(model), device=CPU, dtype=torch.float32)


@pytest.fixture(params=["fused", "plain"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two decoders computes."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "can_fuse", lambda _: False)
    return request.param


def test_two_cards_compute_what_one_device_does_and_never_out_of_both(
    model: Path, tmp_path: Path, decoder: str
) -> None:
    adapter = make_adapter(tmp_path, model, rank=8)
    with Bench(load(model)) as bench:
        expected = play(bench, adapter)
    with PretendedCards() as cards, Bench(spread(load(model), cards)) as bench:
        outcome = play(bench, adapter)
        for content in outcome.contents:
            assert content.kv is not None
            assert content.latents.device == content.kv.keys.device == CARDS[0]
    assert outcome.said == expected.said
    for ours, theirs in zip(outcome.contents, expected.contents, strict=True):
        assert ours.kv is not None
        assert theirs.kv is not None
        assert_close(ours.latents, theirs.latents, atol=TOLERANCE, rtol=0)
        assert_close(ours.kv.keys, theirs.kv.keys, atol=TOLERANCE, rtol=0)
        assert_close(ours.kv.values, theirs.kv.values, atol=TOLERANCE, rtol=0)


def test_moves_of_a_step_do_not_grow_with_the_layers(tmp_path: Path, decoder: str) -> None:
    num_moves = []
    for num_layers in (2, 8):
        model = make_tiny_model(tmp_path / str(num_layers), "qwen3", num_hidden_layers=num_layers)
        with PretendedCards() as cards, Bench(spread(load(model), cards)) as bench:
            before = cards.num_moves
            bench.complete(create_turn("One prompt.", max_tokens=3), create_turn("And another."))
            num_moves.append(cards.num_moves - before)
    assert num_moves[0] == num_moves[1] > 0


@pytest.mark.parametrize("owner", [Rotation, AttentionBatch, GatheredRows])
def test_forgotten_hand_over_is_found_out(
    tiny_qwen2: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
) -> None:
    """Else this file would find nothing."""
    monkeypatch.setattr(owner, "to", lambda self, device: self)
    turns = [create_turn("One.", max_tokens=3), create_turn("Another prompt.", max_tokens=3)]
    with (
        PretendedCards() as cards,
        Bench(spread(load(tiny_qwen2), cards)) as bench,
        pytest.raises(AssertionError, match="Send it again"),
    ):
        bench.complete(*turns)
    assert "tensors on ['cuda:0', 'cuda:1']" in caplog.text


def test_tensors_of_two_cards_are_not_computed_with() -> None:
    with PretendedCards() as cards:
        ours, theirs = (torch.ones(3, device=device) for device in CARDS)
        assert (ours.device, theirs.device) == tuple(CARDS)
        with pytest.raises(RuntimeError, match=r"tensors on \['cuda:0', 'cuda:1'\]"):
            ours + theirs
        moved = theirs.to(CARDS[0])
        assert cards.num_moves == 1
        assert (ours + moved)[1:].view(2, 1).device == CARDS[0]
        assert theirs.device == CARDS[1]


@pytest.mark.parametrize("is_paged", [True, False], ids=["paged", "gathered"])
def test_whole_step_moves_to_another_card(is_paged: bool) -> None:
    pool = create_pool()
    sequences = [SequenceRows([4], 2, 1), SequenceRows([9, 3], 3, 1), SequenceRows([1, 8], 1, 5)]
    batch = prepare_batch(sequences, pool, num_groups=2, is_paged=is_paged)
    with PretendedCards() as cards:
        moved = batch.to(CARDS[1])
        assert moved.pool is pool
        given, taken = tensors_of(batch), tensors_of(moved)
        assert given.keys() == taken.keys()
        assert len(given) == (4 if is_paged else 5)
        for name, tensor in taken.items():
            assert cards.device_of(tensor) == CARDS[1], name
            assert torch.equal(tensor.cpu(), given[name]), name


def tensors_of(batch: AttentionBatch) -> dict[str, torch.Tensor]:
    """All tensors of a step but those of its pool, by where they stand."""
    parts = {"batch": batch, "paged": batch.paged} | dict(enumerate(batch.gathered))
    return {
        f"{part}.{field}": value
        for part, owner in parts.items()
        if owner is not None
        for field, value in vars(owner).items()
        if isinstance(value, torch.Tensor)
    }
