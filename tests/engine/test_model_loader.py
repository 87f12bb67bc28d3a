"""Models are loaded alike from anywhere; what is broken or inexact is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from latentmas_core.engine.embedded_model import EMBEDDED_MODEL_NAME
from latentmas_core.engine.model_loader import (
    LoadedModel,
    load_model,
    resolve_device,
    resolve_dtype,
)
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.errors import ConfigError, ModelError
from tests.factories import make_tiny_model

CPU = torch.device("cpu")
TINY_SHAPE = ModelShape(
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_size=64,
    vocab_size=320,
    max_positions=2048,
)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 1024,
}


def load(folder: Path | str, **options: Any) -> LoadedModel:
    return load_model(str(folder), device=CPU, **({"dtype": torch.float32} | options))


def copy_model(source: Path, folder: Path, **config_changes: Any) -> Path:
    shutil.copytree(source, folder)
    edit_json(folder / "config.json", **config_changes)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


def change_weights(folder: Path, parameter: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[parameter] = weights[parameter] + 0.01
    save_file(weights, path, metadata={"format": "pt"})


# --- what is loaded ---------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen2", "tiny_qwen3"])
def test_tiny_models_load_frozen_with_their_shape(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    loaded = load(request.getfixturevalue(fixture))
    assert loaded.shape == TINY_SHAPE
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.config._attn_implementation == "sdpa"


def test_embedded_model_loads_by_its_name(embedded_model_path: Path) -> None:
    loaded = load(EMBEDDED_MODEL_NAME)
    assert loaded.name == EMBEDDED_MODEL_NAME
    assert loaded.shape == ModelShape(30, 9, 3, 64, 576, 49152, 8192)
    assert loaded.eos_token_ids == {2}
    assert loaded.tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert loaded.fingerprint == load(embedded_model_path).fingerprint


def test_dtype_and_attention_are_the_ones_asked_for(tiny_qwen3: Path) -> None:
    loaded = load(tiny_qwen3, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.config._attn_implementation == "eager"


def test_eos_ids_are_the_union_of_all_three_places(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_llama, tmp_path / "model", eos_token_id=7)
    edit_json(folder / "generation_config.json", eos_token_id=[8, 9])
    assert load(folder).eos_token_ids == {7, 8, 9, 257}


def test_loading_is_silent_and_gives_the_voice_back(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = transformers_logging.get_verbosity()
    load(tiny_llama)
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled()


def test_fixed_rope_scaling_is_accepted(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, "llama", rope_parameters=YARN)
    assert load(folder).model.config.rope_parameters["rope_type"] == "yarn"


# --- fingerprint ------------------------------------------------------------------------------


def test_fingerprint_is_equal_for_two_loads_and_for_a_copy(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    fingerprint = load(tiny_qwen2).fingerprint
    assert len(fingerprint) == 16
    assert load(tiny_qwen2).fingerprint == fingerprint
    assert load(copy_model(tiny_qwen2, tmp_path / "model")).fingerprint == fingerprint


@pytest.mark.parametrize(
    "parameter", ["lm_head.weight", "model.layers.1.self_attn.k_proj.bias", "model.norm.weight"]
)
def test_fingerprint_differs_when_one_parameter_differs(
    parameter: str, tiny_qwen2: Path, tmp_path: Path
) -> None:
    folder = copy_model(tiny_qwen2, tmp_path / "model")
    change_weights(folder, parameter)
    assert load(folder).fingerprint != load(tiny_qwen2).fingerprint


def test_fingerprint_differs_with_the_dtype(tiny_qwen3: Path) -> None:
    assert load(tiny_qwen3, dtype=torch.bfloat16).fingerprint != load(tiny_qwen3).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}},
        {"rope_parameters": YARN},
        {"rms_norm_eps": 1e-5},
    ],
)
def test_fingerprint_differs_with_a_setting_that_changes_keys_or_values(
    change: dict[str, Any], tiny_qwen3: Path, tmp_path: Path
) -> None:
    folder = copy_model(tiny_qwen3, tmp_path / "model", **change)
    assert load(folder).fingerprint != load(tiny_qwen3).fingerprint


# --- missing and broken -----------------------------------------------------------------------


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere' does not exist") as caught:
        load(tmp_path / "nowhere")
    assert caught.value.param == "model_name"


def test_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ModelError, match=r"model\.gguf' is not a folder"):
        load(tmp_path / "model.gguf")


def test_hub_model_that_cannot_be_had_names_the_remedy() -> None:
    with pytest.raises(ModelError, match="'nobody/nothing' cannot be had from the hub") as caught:
        load("nobody/nothing")
    assert caught.value.__cause__ is not None
    assert EMBEDDED_MODEL_NAME in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folder_without_a_needed_file_is_refused(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = copy_model(tiny_llama, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"model' has no {name.replace('model', r'.')}"):
        load(folder)


def test_pickled_weights_are_not_read(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_llama, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", r"config\.json"),
        ("tokenizer.json", "the tokenizer"),
        ("model.safetensors", "the weights"),
    ],
)
def test_truncated_file_is_named(name: str, part: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_llama, tmp_path / "model")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=f"model' is broken: {part} cannot be read") as caught:
        load(folder)
    assert caught.value.__cause__ is not None


def test_missing_parameter_is_never_replaced_by_random_numbers(
    tiny_qwen3: Path, tmp_path: Path
) -> None:
    folder = copy_model(tiny_qwen3, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing, the first is 'model\.layers\.1\.mlp\.up_proj"):
        load(folder)


def test_model_that_does_not_fit_is_not_called_broken(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", run_out)
    with pytest.raises(ModelError, match=r"does not fit into the memory of cpu: .* 9\.00 GiB"):
        load(tiny_llama)


def test_weights_of_another_size_are_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_qwen3, tmp_path / "model", intermediate_size=96)
    with pytest.raises(ModelError, match="the weights cannot be read"):
        load(folder)


# --- what the engine cannot run exactly -------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "settings", "named"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
         r"layer_types is \['sliding_attention'\]"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 9},
         "sliding_window is 64"),
        ("mistral", {"sliding_window": 64}, "sliding_window is 64"),
        ("gemma2", {"layer_types": ["full_attention"] * 3, "sliding_window": None},
         r"attn_logit_softcapping is 50\.0"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 3, "sliding_window": None},
         r"rope_parameters is \['full_attention'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "rope_type is 'dynamic'"),
        ("llama",
         {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0,
                              "original_max_position_embeddings": 1024,
                              "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
         "rope_type is 'longrope'"),
        ("granite", {"logits_scaling": 4.0}, r"logits_scaling is 4\.0"),
        ("cohere", {}, r"logit_scale is 0\.0625"),
        ("smollm3", {"no_rope_layers": [1, 1, 0]}, r"no_rope_layers is \[1, 1, 0\]"),
        ("gpt2", {"head_dim": None}, r"model\.rotary_emb is None"),
        ("glm", {}, "rotary dimensions is 8"),
        ("ernie4_5", {}, r"rotation of \[0, 1, 2, 3\] is \[-1, 0, -3, 2\]"),
    ],
)  # fmt: skip
def test_model_that_would_be_inexact_is_refused_by_name(
    architecture: str, settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / architecture, architecture, **settings)
    with pytest.raises(ModelError, match=named) as caught:
        load(folder)
    assert f"model {str(folder)!r} cannot be run exactly" in str(caught.value)
    assert caught.value.param == "model_name"


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("t5", "T5ForConditionalGeneration"), ("bert", "BertModel")]
)
def test_other_than_a_causal_language_model_is_refused(
    model_type: str, architecture: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = copy_model(
        tiny_llama, tmp_path / "model", model_type=model_type, architectures=[architecture]
    )
    with pytest.raises(ModelError, match=f"architectures is '{architecture}'"):
        load(folder)


def test_mistral_without_a_window_is_accepted(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, "mistral", sliding_window=None)
    assert load(folder).shape == TINY_SHAPE


def test_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, "llama", chat_template=False)
    with pytest.raises(ModelError, match="chat_template is None"):
        load(folder)


def test_slow_tokenizer_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", property(lambda _: False))
    with pytest.raises(ModelError, match="a fast tokenizer is needed"):
        load(tiny_llama)


# --- device and dtype -------------------------------------------------------------------------


def test_device_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="visible CUDA devices is 2"):
        resolve_device("cuda:2")


def test_device_falls_back_to_the_cpu_only_when_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="'cuda'; the number of visible CUDA devices is 0"):
        resolve_device("cuda")


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "mps"])
def test_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="it must be 'auto'") as caught:
        resolve_device(device)
    assert caught.value.param == "device"


def test_dtype_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.float16


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of auto, bfloat16, float16, float32"):
        resolve_dtype("int8", CPU)
