"""Which device gets which layers: decided by bytes, before a weight is read."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from latentmas_core.engine.model_loader import load_model, resolve_devices
from latentmas_core.engine.shards import Placement, Shard, devices_of, place, split_layers
from latentmas_core.errors import ConfigError, ModelError
from tests.engine.engines import CPU
from tests.factories import make_tiny_model

CARDS = [torch.device("cuda", index) for index in range(4)]


def ends_of(layer_bytes: list[int], num_devices: int, **bytes_beside: int) -> list[int]:
    shards = split_layers(layer_bytes, CARDS[:num_devices], **bytes_beside)
    assert [shard.device for shard in shards] == CARDS[:num_devices]
    assert shards[0].start == 0
    for before, after in pairwise(shards):
        assert before.end == after.start
    return [shard.end for shard in shards]


def place_model(model: Path, num_devices: int = 2, **options: Any) -> Placement:
    config = AutoConfig.from_pretrained(model)
    return place("m", config, CARDS[:num_devices], **({"dtype": torch.float32} | options))


@pytest.mark.parametrize(
    ("layer_bytes", "num_devices", "bytes_beside", "ends"),
    [
        ([1] * 8, 2, {}, [4, 8]),
        ([1] * 8, 3, {}, [3, 5, 8]),
        ([1] * 8, 4, {}, [2, 4, 6, 8]),
        ([1] * 8, 2, {"first_bytes": 4}, [2, 8]),
        ([1] * 8, 2, {"first_bytes": 2, "last_bytes": 6}, [6, 8]),
        ([6, 1, 1, 1, 1, 2], 2, {}, [1, 6]),
        ([5], 1, {}, [1]),
    ],
)
def test_devices_hold_about_equally_many_bytes(
    layer_bytes: list[int], num_devices: int, bytes_beside: dict[str, int], ends: list[int]
) -> None:
    assert ends_of(layer_bytes, num_devices, **bytes_beside) == ends


@pytest.mark.parametrize("bytes_beside", [{"first_bytes": 100}, {"last_bytes": 100}, {}])
@pytest.mark.parametrize("num_devices", [1, 2, 3, 4])
def test_every_device_has_a_layer_however_large_the_embeddings_are(
    bytes_beside: dict[str, int], num_devices: int
) -> None:
    for num_layers in range(num_devices, 7):
        shards = split_layers([1] * num_layers, CARDS[:num_devices], **bytes_beside)
        assert all(shard.num_layers >= 1 for shard in shards)
        assert sum(shard.num_layers for shard in shards) == num_layers


def test_more_devices_than_layers_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        ConfigError, match=r"num_devices is 4; the model has 3 layers.*at most 3"
    ) as e:
        split_layers([1, 1, 1], CARDS)
    assert e.value.param == "num_devices"


def test_device_that_is_named_twice_counts_its_layers_together() -> None:
    shards = [Shard(CPU, 0, 2), Shard(CARDS[0], 2, 3), Shard(CPU, 3, 7)]
    assert devices_of(shards) == {CPU: 6, CARDS[0]: 1}


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2", "tiny_qwen3"])
def test_every_weight_has_its_device(model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    placement = place_model(path, 3)
    loaded = load_model(str(path), device=CPU, dtype=torch.float32)
    for name, _ in [*loaded.model.named_parameters(), *loaded.model.named_buffers()]:
        owners = [module for module in placement.device_map if name.startswith(f"{module}.")]
        assert len(owners) == 1, name


def test_head_of_its_own_lies_behind_the_last_layer(tiny_qwen2: Path) -> None:
    shards, device_map = place_model(tiny_qwen2)
    assert [shard.device for shard in shards] == CARDS[:2]
    assert device_map["model.embed_tokens"] == device_map["model.rotary_emb"] == CARDS[0]
    assert device_map["model.norm"] == device_map["lm_head"] == CARDS[1]
    assert device_map["model.layers.0"] == CARDS[0]
    assert device_map["model.layers.2"] == CARDS[1]


def test_head_that_is_tied_to_the_embeddings_lies_with_them(tiny_llama: Path) -> None:
    _, device_map = place_model(tiny_llama)
    assert device_map["model.embed_tokens"] == device_map["lm_head"] == CARDS[0]
    assert device_map["model.norm"] == CARDS[1]


def test_smaller_layers_leave_more_of_them_beside_the_embeddings(tmp_path: Path) -> None:
    """Weights in 4 bits, embeddings and head as they are."""
    model = make_tiny_model(tmp_path, "llama", num_hidden_layers=16, vocab_size=1500)
    whole, small = (place_model(model, 3, quantization=kind) for kind in (None, "4bit"))
    assert whole.shards[1].num_layers < small.shards[1].num_layers


def test_model_with_its_layers_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    expected = r"'m' cannot be spread over 2 devices: .*model\.layers.*Set num_devices to 1"
    with pytest.raises(ModelError, match=expected) as caught:
        place_model(make_tiny_model(tmp_path, "gpt2"))
    assert caught.value.param == "num_devices"


# --- which devices a user can ask for -------------------------------------------------------------


def pretend_cards(monkeypatch: pytest.MonkeyPatch, num_cards: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cards)


def test_neighbours_of_the_first_device_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(monkeypatch, 4)
    assert resolve_devices("auto", 1) == (CARDS[0],)
    assert resolve_devices("cuda", 2) == tuple(CARDS[:2])
    assert resolve_devices("auto", 4) == tuple(CARDS)
    assert resolve_devices("cuda:1", 3) == tuple(CARDS[1:])
    assert resolve_devices("cpu", 1) == (CPU,)


@pytest.mark.parametrize(("device", "num_devices"), [("cuda", 3), ("auto", 9), ("cuda:1", 2)])
def test_more_devices_than_cards_are_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch, device: str, num_devices: int
) -> None:
    pretend_cards(monkeypatch, 2)
    expected = rf"num_devices is {num_devices}, .*visible CUDA devices is 2\. Lower num_devices"
    with pytest.raises(ConfigError, match=expected) as caught:
        resolve_devices(device, num_devices)
    assert caught.value.param == "num_devices"


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_cpu_is_one_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    pretend_cards(monkeypatch, 0)
    expected = rf"num_devices is 2 and device '{device}' is a CPU.*Set num_devices to 1"
    with pytest.raises(ConfigError, match=expected) as caught:
        resolve_devices(device, 2)
    assert caught.value.param == "num_devices"
