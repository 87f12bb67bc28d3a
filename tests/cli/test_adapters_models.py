"""``latentmas adapters`` and ``latentmas models``."""

import json

import pytest

from latentmas_core import AdapterError
from latentmas_core.engine.embedded_model import EMBEDDED_MODEL_NAME
from latentmas_core.lora.implied_base import implied_base
from tests.cli.conftest import read_json, run_cli
from tests.deployments.keys import ADMIN, ALICE
from tests.lora.adapters import make_adapter


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, tiny_llama):
    """Of another rank, and of fewer targets."""
    folder = tmp_path_factory.mktemp("adapters") / "other"
    return make_adapter(folder, tiny_llama, rank=2, seed=1, targets=("q_proj", "v_proj"))


def test_list_tells_what_a_service_has_loaded_and_what_fits_it(service):
    result = run_cli("adapters", "list", "--endpoint", service.url)
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["loaded", "mine", "", "thinkers: ready, absent; deciders: ready"]
    fits = {name: state for state, name, *_ in lines[1:]}
    assert (fits["medical_reasoner"], fits["math_instruct"]) == ("fits", "other base")


def test_list_without_a_service_is_the_registry(monkeypatch):
    listing = read_json(run_cli("adapters", "list", "--json", "--model", "Qwen/Qwen2.5-7B"))
    assert listing["loaded"] == []
    fits = {entry["name"]: entry["fits"] for entry in listing["registry"]}
    assert fits["medical_instruct"]
    assert not fits["medical_reasoner"]


def test_load_and_unload_change_a_service(service):
    directory = service.reasoner.adapters
    flags = ("--endpoint", service.url)
    loaded = run_cli(
        "adapters", "load", "new", "owner/name", *flags, "--pinned", "--revision", "v1"
    )
    assert loaded.exit_code == 0, loaded.output
    source = directory.sources["new"]
    assert (source.path, source.revision, source.pinned) == ("owner/name", "v1", True)
    assert run_cli("adapters", "unload", "new", *flags).exit_code == 0
    assert directory.sources == {}


def test_load_by_name_alone_asks_the_registry_of_the_service(service):
    run_cli("adapters", "load", "medical_reasoner", "--endpoint", service.url)
    assert "MedicalReasoner" in service.reasoner.adapters.sources.pop("medical_reasoner").path


def test_load_needs_the_right_to_it(locked_service):
    arguments = ("adapters", "load", "new", "owner/name", "--endpoint", locked_service.url)
    refused = run_cli(*arguments, "--api-key", ALICE)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "error:" in refused.stderr
    assert run_cli(*arguments, "--api-key", ADMIN).exit_code == 0


def test_unloading_what_is_not_loaded_is_a_failure(service):
    result = run_cli("adapters", "unload", "nobody", "--endpoint", service.url)
    assert result.exit_code == 1
    assert "'nobody' is not loaded" in result.stderr


def test_inspect_says_what_an_adapter_is(adapter_folder):
    found = read_json(run_cli("adapters", "inspect", str(adapter_folder), "--json"))
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    assert found["base_model"] == config["base_model_name_or_path"]
    assert (found["rank"], found["layers"], found["dtype"]) == (4, 3, "float32")
    assert len(found["targets"]) == 7
    # 4 per layer: hidden 64, 4 heads and 2 KV heads of 16, intermediate 128
    in_and_out = 2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 128) + (128 + 64)
    assert found["parameters"] == 3 * 4 * in_and_out


def test_inspect_is_lines_for_people(adapter_folder):
    result = run_cli("adapters", "inspect", str(adapter_folder))
    assert "rank\t4" in result.stdout


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("adapter_config.json", b"{", "is not JSON"),
        ("adapter_model.safetensors", b"x", "no complete safetensors file"),
        ("adapter_model.safetensors", None, "cannot be read"),
    ],
)
def test_inspect_refuses_a_broken_adapter(adapter_folder, tmp_path, name, content, told):
    for file in adapter_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    result = run_cli("adapters", "inspect", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr.replace("\n", " ")


def test_merge_writes_an_adapter_with_the_layers_of_both(adapter_folder, other_folder, tmp_path):
    output = tmp_path / "both"
    arguments = (str(output), f"{adapter_folder}=0.7", str(other_folder), "--method", "cat")
    result = run_cli("adapters", "merge", *arguments)
    assert result.exit_code == 0, result.output
    found = read_json(run_cli("adapters", "inspect", str(output), "--json"))
    assert (found["rank"], len(found["targets"])) == (4 + 2, 7)


def test_merge_into_a_folder_that_exists_is_a_failure(adapter_folder, other_folder, tmp_path):
    result = run_cli("adapters", "merge", str(tmp_path), str(adapter_folder), str(other_folder))
    assert result.exit_code == 1
    assert "error:" in result.stderr


def test_merge_of_adapters_for_two_bases_is_a_failure(adapter_folder, tiny_qwen2, tmp_path):
    stranger = make_adapter(tmp_path / "stranger", tiny_qwen2, rank=2)
    output = tmp_path / "both"
    result = run_cli("adapters", "merge", str(output), str(adapter_folder), str(stranger))
    assert result.exit_code == 1
    assert "was made for base model" in result.stderr.replace("\n", " ")
    assert not output.exists()


def test_base_is_described_by_the_adapters_of_it(adapter_folder, other_folder):
    base = implied_base([other_folder, adapter_folder])
    assert base.num_layers == 3
    assert base.targets["self_attn.k_proj"] == (32, 64)
    assert set(base.targets) > set(implied_base([other_folder]).targets)


def test_folder_without_an_adapter_describes_no_base(tmp_path):
    with pytest.raises(AdapterError, match="cannot be read"):
        implied_base([tmp_path])


def test_models_of_a_service_are_those_that_the_flag_takes(service):
    models = read_json(run_cli("models", "--endpoint", service.url, "--json"))
    kinds = {model["name"]: model["kind"] for model in models}
    assert kinds["latentmas/hierarchical"] == "pipeline"
    assert kinds["Qwen2.5-3B-Instruct"] == "base"
    assert kinds["mine"] == "adapter"


def test_models_without_a_service_begin_with_the_embedded_one(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    result = run_cli("models")
    assert result.stdout == f"{EMBEDDED_MODEL_NAME}\tbase\tthe default; needs no hub\n"


def test_models_without_a_service_tell_what_the_cache_of_the_hub_has(tmp_path, monkeypatch):
    for name, files in {
        "base": ("config.json", "model.safetensors"),
        "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    }.items():
        folder = tmp_path / f"models--owner--{name}" / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_bytes(b"x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    names = [line.split("\t")[0] for line in run_cli("models").stdout.splitlines()]
    assert names == [EMBEDDED_MODEL_NAME, "owner/base"]
