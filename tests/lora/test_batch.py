"""The terms of a step against a naive twin: row by row, adapter by adapter, target by target."""

import random

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.lora import batch
from latentmas_core.lora.arena import Arena, Berth, fill
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.batch import LoRABatch, Segment
from latentmas_core.lora.checkpoint import LoRACheckpoint, LoRAPair
from latentmas_core.lora.packed import pack_adapter

BASE = BaseModel(
    "m", 2, {"self_attn.q_proj": (12, 8), "self_attn.k_proj": (4, 8), "mlp.up_proj": (10, 8)}
)
SITES = (("self_attn.q_proj", "self_attn.k_proj"), ("mlp.up_proj",))
SHAPE = ModelShape(2, 2, 2, 4, 8, 100, 100)
SCALING = 0.5


def make_checkpoint(rank: int, targets: tuple[str, ...], seed: int) -> LoRACheckpoint:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(BASE.num_layers):
        for target in targets:
            out_features, in_features = BASE.targets[target]
            weights[layer, target] = LoRAPair(
                torch.randn(rank, in_features, generator=generator),
                torch.randn(out_features, rank, generator=generator),
            )
    return LoRACheckpoint(f"digest-{seed}", "m", rank, SCALING, targets, weights)


class Loaded:
    """An arena with adapters in it, and the checkpoints that they were made from."""

    def __init__(self, *kinds: tuple[int, tuple[str, ...]]) -> None:
        blocks = BlockManager(400, 4)
        pool = KVPool(
            SHAPE, num_blocks=400, block_size=4, dtype=torch.float32, device=torch.device("cpu")
        )
        arena = Arena(BASE, SITES, blocks, pool, lambda _: None)
        self.checkpoints = [make_checkpoint(*kind, seed) for seed, kind in enumerate(kinds)]
        self.berths: list[Berth] = []
        for checkpoint in self.checkpoints:
            packed = pack_adapter(checkpoint, BASE, torch.float32, is_pinned=False)
            berth = arena.reserve(packed.layout)
            assert berth is not None
            fill(berth, packed)
            self.berths.append(berth)

    def segment(self, start: int, num_rows: int, adapter: int, weight: float) -> Segment:
        return Segment(start, num_rows, self.berths[adapter].terms, weight)

    def add_naively(
        self, layer: int, site: int, segments: list[tuple[int, int, int, float]], x: torch.Tensor
    ) -> torch.Tensor:
        num_out = sum(BASE.targets[target][0] for target in SITES[site])
        y = torch.zeros(x.shape[0], num_out)
        for start, num_rows, adapter, weight in segments:
            for row in range(start, start + num_rows):
                out_start = 0
                for target in SITES[site]:
                    num = BASE.targets[target][0]
                    pair = self.checkpoints[adapter].weights.get((layer, target))
                    if pair is not None:
                        term = pair.b @ (pair.a @ x[row]) * SCALING * weight
                        y[row, out_start : out_start + num] += term
                    out_start += num
        return y


ALL = tuple(BASE.targets)
Q = ("self_attn.q_proj",)
K_UP = ("self_attn.k_proj", "mlp.up_proj")
CASES = {
    "one": [(0, 3, 0, 1.0)],
    "base rows between": [(1, 2, 0, 1.0), (5, 1, 3, 1.0)],
    "different layouts": [(0, 1, 0, 1.0), (1, 2, 3, 1.0), (3, 1, 4, 1.0), (4, 2, 5, 1.0)],
    "neighbours of one layout": [(2, 1, 2, 1.0), (3, 1, 1, 1.0), (4, 1, 0, 1.0)],
    "two rows each": [(0, 2, 2, 1.0), (2, 2, 1, 1.0), (4, 2, 0, 1.0)],
    "gap between them": [(0, 1, 2, 1.0), (1, 1, 0, 1.0)],
    "unequal rows": [(0, 1, 2, 1.0), (1, 3, 1, 1.0), (4, 1, 0, 1.0)],
    "weights": [(0, 1, 2, 0.5), (1, 1, 1, 0.5), (2, 1, 0, -2.0)],
    "unequal distances": [(0, 1, 0, 1.0), (1, 1, 1, 1.0), (2, 1, 6, 1.0), (3, 1, 2, 1.0)],
    "unequal distances, two rows each": [(0, 2, 6, 0.5), (2, 2, 2, 0.5), (4, 2, 1, 0.5)],
    "composition": [(0, 2, 2, 0.5), (0, 2, 1, 0.25), (2, 1, 0, 1.0)],
}


@pytest.fixture(scope="module")
def adapters() -> Loaded:
    """Three of one layout beside each other, three others, and one more like the first."""
    return Loaded((4, ALL), (4, ALL), (4, ALL), (3, Q), (5, K_UP), (1, ALL), (4, ALL))


@pytest.fixture(params=["copied", "in place"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike adapters at unequal distances: out of copies, or each where it lies."""
    if request.param == "in place":
        monkeypatch.setattr(batch, "MAX_COPIED_BYTES", 0)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("layer", "site"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_terms_are_those_of_the_twin(adapters: Loaded, case: str, layer: int, site: int) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    segments = CASES[case]
    expected = adapters.add_naively(layer, site, segments, x)
    y = torch.zeros_like(expected)
    LoRABatch([adapters.segment(*one) for one in segments]).add(layer, site, x, y)
    assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "num_segments"),
    [
        ("neighbours of one layout", 1),
        ("two rows each", 1),
        ("gap between them", 1),
        ("unequal rows", 3),
        ("weights", 2),
        ("composition", 3),
    ],
)
def test_adapters_at_equal_distances_are_one_product(
    adapters: Loaded, case: str, num_segments: int
) -> None:
    segments = LoRABatch([adapters.segment(*one) for one in CASES[case]]).segments
    assert len(segments) == num_segments


@pytest.mark.parametrize("case", ["unequal distances", "unequal distances, two rows each"])
def test_small_adapters_at_unequal_distances_are_one_product(
    adapters: Loaded, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, a: batches.append(len(a)) or bmm(x, a))
    x, y = torch.ones(6, 8), torch.zeros(6, 16)
    LoRABatch([adapters.segment(*one) for one in CASES[case]]).add(0, 0, x, y)
    assert batches == [len(CASES[case])]


@pytest.mark.usefixtures("_either_way")
def test_random_batches_equal_the_twin() -> None:
    dice = random.Random(0)
    kinds = [(dice.choice([1, 2, 4]), dice.choice([ALL, Q, K_UP])) for _ in range(12)]
    adapters = Loaded(*kinds)
    for _ in range(60):
        chosen = dice.sample(range(12), 6)
        chosen.sort(key=lambda one: (adapters.berths[one].num_blocks, adapters.berths[one].start))
        segments, start = [], 0
        for adapter in chosen:
            num_rows = dice.choice([1, 1, 1, 3])
            segments.append((start, num_rows, adapter, dice.choice([1.0, 1.0, 0.3])))
            start += num_rows
        x = torch.randn(start + 1, 8)
        expected = adapters.add_naively(1, 0, segments, x)
        y = torch.zeros_like(expected)
        LoRABatch([adapters.segment(*one) for one in segments]).add(1, 0, x, y)
        assert_close(y, expected, atol=1e-4, rtol=1e-4)
        assert not y[-1].any(), "the row behind all segments is the base's"
