"""Adapters are read as PEFT saves them; whatever would not be computed exactly is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentmas_core.errors import AdapterError
from latentmas_core.lora.adapter_config import CONFIG_FILE
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.checkpoint import (
    PICKLE_FILE,
    WEIGHTS_FILE,
    LoRACheckpoint,
    read_checkpoint,
)
from tests.lora.adapters import ALL_TARGETS, make_adapter

RANK = 4
MAX_RANK = 64
PREFIX = "base_model.model.model.layers"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("original") / "a", tiny_llama, rank=RANK)


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "adapter"))


@pytest.fixture
def base(tiny_llama: Path) -> BaseModel:
    return make_base(str(tiny_llama))


def make_base(name: str, *, hidden: int = 64, num_layers: int = 3) -> BaseModel:
    attention = {"q": (64, hidden), "k": (32, hidden), "v": (32, hidden), "o": (hidden, 64)}
    targets = {f"self_attn.{name}_proj": shape for name, shape in attention.items()}
    targets |= {f"mlp.{name}_proj": (128, hidden) for name in ("gate", "up")}
    return BaseModel(name, num_layers, targets | {"mlp.down_proj": (hidden, 128)})


def read(adapter: Path, base: BaseModel) -> LoRACheckpoint:
    return read_checkpoint(adapter, base, max_rank=MAX_RANK)


def change_config(adapter: Path, **fields: Any) -> None:
    path = adapter / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = adapter / WEIGHTS_FILE
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_weights_are_those_of_the_file(adapter: Path, base: BaseModel) -> None:
    checkpoint = read(adapter, base)
    assert (checkpoint.rank, checkpoint.scaling) == (RANK, 2.0)
    assert checkpoint.targets == tuple(base.targets)
    saved = load_file(adapter / WEIGHTS_FILE)
    assert len(saved) == 2 * len(checkpoint.weights) == 2 * 3 * 7
    for (layer, target), pair in checkpoint.weights.items():
        assert torch.equal(pair.a, saved[f"{PREFIX}.{layer}.{target}.lora_A.weight"])
        assert torch.equal(pair.b, saved[f"{PREFIX}.{layer}.{target}.lora_B.weight"])


def test_rslora_scales_by_the_root_of_the_rank(adapter: Path, base: BaseModel) -> None:
    change_config(adapter, use_rslora=True, lora_alpha=6)
    assert read(adapter, base).scaling == pytest.approx(6 / RANK**0.5)


def test_identity_is_what_is_in_the_files(adapter: Path, original: Path, base: BaseModel) -> None:
    before = read(adapter, base).digest
    assert before == read(original, base).digest
    change_config(adapter, lora_dropout=0.1)
    changed = read(adapter, base).digest
    assert changed != before
    change_weights(adapter, lambda w: w[f"{PREFIX}.0.mlp.up_proj.lora_A.weight"].mul_(2))
    assert read(adapter, base).digest not in (before, changed)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"use_something_new": {"a": 1}}, "use_something_new"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "Qwen/Qwen2.5-7B"}, "Qwen2.5-7B"),
        ({"r": 128}, "128"),
        ({"r": 0}, "0"),
        ({"r": "four"}, "four"),
        ({"r": 8}, "shape"),
        ({"lora_alpha": "much"}, "much"),
        ({"target_modules": [*ALL_TARGETS, "lm_head"]}, "lm_head"),
        ({"target_modules": [1, 2]}, r"\[1, 2\]"),
        ({"target_modules": {"q_proj": True}}, "list of names"),
        ({"base_model_name_or_path": 5}, "is 5"),
        ({"base_model_name_or_path": ["a"]}, r"\['a'\]"),
        ({"lora_alpha": 10**400}, "lora_alpha 1000"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_alpha": True}, "lora_alpha True"),
        ({"use_rslora": "false"}, "use_rslora 'false'"),
        ({"init_lora_weights": "loftq"}, "loftq"),  # PEFT asks for scipy first
        ({"init_lora_weights": ["eva"]}, "init_lora_weights"),
        ({"bias": ["all"]}, "bias"),
        ({"r": True}, "rank True"),
        ({"task_type": 7}, "no LoRA configuration"),
        ({"eva_config": [1]}, "no LoRA configuration"),
    ],
)
def test_option_that_is_not_supported_is_named(
    adapter: Path, base: BaseModel, fields: dict[str, Any], named: str
) -> None:
    change_config(adapter, **fields)
    with pytest.raises(AdapterError, match=named):
        read(adapter, base)


def test_unknown_option_that_is_off_is_no_obstacle(adapter: Path, base: BaseModel) -> None:
    change_config(adapter, use_something_new=False)
    assert read(adapter, base).rank == RANK


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only", "lora_bias": True}, "bias"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of some too
def test_adapters_that_peft_made_with_such_options(
    tmp_path: Path, tiny_qwen2: Path, options: dict[str, Any], named: str
) -> None:
    targets = ("q_proj", "v_proj")  # which have biases in Qwen2
    made = make_adapter(tmp_path / "made", tiny_qwen2, rank=RANK, targets=targets, **options)
    with pytest.raises(AdapterError, match=named):
        read(made, make_base(str(tiny_qwen2)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of it too
def test_embedding_as_target_is_named(tmp_path: Path, tiny_qwen2: Path) -> None:
    targets = ("q_proj", "embed_tokens")
    made = make_adapter(tmp_path / "made", tiny_qwen2, rank=RANK, targets=targets)
    with pytest.raises(AdapterError, match="embed_tokens"):
        read(made, make_base(str(tiny_qwen2)))


NAME = f"{PREFIX}.1.self_attn.q_proj.lora_A.weight"
OTHER_NAME = NAME.replace("model.model.model", "model.model")  # of the same place


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w[NAME].view(-1)[3:4].fill_(float("nan")), "not finite"),
        (lambda w: w[NAME].view(-1)[3:4].fill_(float("inf")), "not finite"),
        (lambda w: w.update({NAME: w[NAME].to(torch.int32)}), r"torch\.int32; allowed are"),
        (lambda w: w.update({NAME: w[NAME].to(torch.float8_e4m3fn)}), "float8_e4m3fn; allowed"),
        (lambda w: w.update({OTHER_NAME: w[NAME].clone()}), "beside another tensor for layers.1"),
        (lambda w: w.pop(NAME), "lacks 1 weights"),
        (lambda w: w.update({NAME: w[NAME][:, :-1].contiguous()}), "shape"),
        (lambda w: w.update({f"{PREFIX}.9.mlp.up_proj.lora_A.weight": w[NAME].clone()}), "9"),
        (
            lambda w: w.update({"base_model.model.lm_head.lora_A.weight": w[NAME].clone()}),
            "lm_head",
        ),
        (lambda w: w.update({f"{PREFIX}.0.mlp.up_proj.bias": w[NAME][0].clone()}), "bias"),
        (lambda w: w.clear(), "no weights"),
    ],
)
def test_damaged_weights_are_named(
    adapter: Path, base: BaseModel, change: Callable[[dict[str, torch.Tensor]], object], named: str
) -> None:
    change_weights(adapter, change)
    with pytest.raises(AdapterError, match=named):
        read(adapter, base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_float_type_are_read_and_checked(
    adapter: Path, base: BaseModel, dtype: torch.dtype
) -> None:
    def convert(weights: dict[str, torch.Tensor]) -> None:
        weights.update({name: tensor.to(dtype) for name, tensor in weights.items()})

    change_weights(adapter, convert)
    assert read(adapter, base).weights[0, "mlp.up_proj"].a.dtype == dtype
    change_weights(adapter, lambda w: w[NAME].view(-1)[3:4].fill_(float("inf")))
    with pytest.raises(AdapterError, match="not finite"):
        read(adapter, base)


@pytest.mark.parametrize("other", [{"hidden": 32}, {"num_layers": 4}, {"num_layers": 2}], ids=str)
def test_right_name_with_other_shapes_is_refused(
    adapter: Path, tiny_llama: Path, other: dict[str, int]
) -> None:
    with pytest.raises(AdapterError, match=r"another model|incomplete"):
        read(adapter, make_base(str(tiny_llama), **other))


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_file_that_is_missing_is_named(adapter: Path, base: BaseModel, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(AdapterError, match=name):
        read(adapter, base)


def test_folder_that_is_missing_is_named(tmp_path: Path, base: BaseModel) -> None:
    with pytest.raises(AdapterError, match="nowhere"):
        read(tmp_path / "nowhere", base)


@pytest.mark.parametrize("num_bytes", [0, 4, 100, -8])
def test_truncated_weights_are_refused(adapter: Path, base: BaseModel, num_bytes: int) -> None:
    path = adapter / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(AdapterError, match="no complete safetensors"):
        read(adapter, base)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"LORA"', "[" * 200_000], ids=range(6))
def test_config_that_is_no_configuration_is_refused(
    adapter: Path, base: BaseModel, text: str
) -> None:
    (adapter / CONFIG_FILE).write_text(text)
    with pytest.raises(AdapterError, match=r"not JSON|peft_type"):
        read(adapter, base)


class Bomb:
    """A pickle that leaves a trace where it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_pickle_is_never_opened(adapter: Path, base: BaseModel, tmp_path: Path) -> None:
    (adapter / WEIGHTS_FILE).unlink()
    (adapter / PICKLE_FILE).write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    with pytest.raises(AdapterError, match="pickle"):
        read(adapter, base)
    assert not (tmp_path / "opened").exists()


def test_file_that_is_too_large_is_not_read(
    adapter: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (adapter / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(2**34)  # takes no room on the disk
    with pytest.raises(AdapterError, match=str(2**34)):
        read(adapter, base)
