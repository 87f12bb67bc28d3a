"""The tables of adapters that can be had by name."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from latentmas_core.errors import AdapterError, ConfigError, NotFoundError
from latentmas_core.lora.registry import AdapterRegistry, check_base

MINE = "  - {name: mine, path: me/mine, base_model: Qwen2.5-3B, domain: law, revision: abc}\n"


def write(path: Path, *entries: str) -> Path:
    path.write_text("adapters:\n" + "".join(entries))
    return path


def test_shipped_table_is_that_of_the_product() -> None:
    shipped = {one.name: (one.path, one.domain, one.base_model) for one in AdapterRegistry()}
    assert shipped == {
        "medical_reasoner": (
            "iimran/Qwen2.5-3B-R1-MedicalReasoner-lora-adapter",
            "medical",
            "Qwen2.5-3B",
        ),
        "medical_instruct": (
            "zjudai/flowertune-medical-lora-qwen2.5-7b-instruct",
            "medical",
            "Qwen2.5-7B-Instruct",
        ),
        "math_instruct": (
            "SKNahin/Qwen2.5-Math-7B-Instruct-bnb-4bit-lora",
            "math",
            "Qwen2.5-Math-7B-Instruct",
        ),
        "coder_7b": (
            "Alexis-Az/Qwen-2.5-Coder-7B-Instruct-LoRA",
            "code",
            "Qwen2.5-Coder-7B-Instruct",
        ),
        "reasoning_lora": (
            "PandurangMopgar/qwen-2.5-7b-reasoning-lora",
            "reasoning",
            "Qwen2.5-7B",
        ),
    }


def test_users_entries_stand_beside_the_shipped_ones_and_may_replace_them(tmp_path: Path) -> None:
    other = "  - {name: coder_7b, path: me/coder, base_model: Qwen2.5-3B}\n"
    registry = AdapterRegistry([write(tmp_path / "mine.yaml", MINE, other)])
    assert registry.get("mine").revision == "abc"
    assert registry.get("coder_7b").path == "me/coder"
    assert len(registry) == 6


def test_what_fits_is_told_per_base_model(tmp_path: Path) -> None:
    registry = AdapterRegistry([write(tmp_path / "mine.yaml", MINE)])
    fits = registry.compatible_with("Qwen/Qwen2.5-3B-Instruct")
    assert {name for name, does_fit in fits.items() if does_fit} == {"medical_reasoner", "mine"}
    check_base(registry.get("mine"), "Qwen/Qwen2.5-3B-Instruct")
    with pytest.raises(AdapterError, match=r"Qwen2\.5-Coder-7B-Instruct.*Qwen/Qwen2\.5-3B"):
        check_base(registry.get("coder_7b"), "Qwen/Qwen2.5-3B")


def test_reload_reads_the_files_again(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", MINE)
    registry = AdapterRegistry([path])
    write(path, MINE.replace("mine", "yours"))
    registry.reload()
    assert registry.get("yours").path == "me/yours"
    with pytest.raises(NotFoundError, match=r"'mine'.*yours"):
        registry.get("mine")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("adapters: [", "not valid YAML"),
        ("", "one key"),
        ("adapters: {}", "one key"),
        ("adapters: [2024-99-99]", "not valid YAML"),
        ("adapters: [{1: 2}]", "name"),
        ("adapters: []\nmore: 1", "one key"),
        ("adapters: [text]", "entry 1"),
        (f"adapters:\n{MINE}{MINE}", "'mine' twice"),
        ("adapters:\n  - {name: x, path: a/b}", "base_model"),
        ("adapters:\n  - {name: x/y, path: a/b, base_model: m}", "name"),
        ("adapters:\n  - {name: x, path: '', base_model: m}", "path"),
        ("adapters:\n  - {name: x, path: a/b, base_model: m, rank: 8}", "rank"),
        ("adapters:\n  - {name: x, path: a/b, base_model: m, pinned: perhaps}", "pinned got 'per"),
    ],
)
def test_broken_file_is_named_and_the_old_table_stays(
    tmp_path: Path, text: str, named: str
) -> None:
    path = write(tmp_path / "mine.yaml", MINE)
    registry = AdapterRegistry([path])
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as refused:
        registry.reload()
    assert str(path) in refused.value.message
    assert registry.get("mine")
    with pytest.raises(ConfigError, match=named):
        AdapterRegistry([path])


def test_later_file_goes_before_an_earlier_one_and_all_of_them_are_kept_if_one_breaks(
    tmp_path: Path,
) -> None:
    first = write(tmp_path / "first.yaml", MINE)
    last = write(tmp_path / "last.yaml", MINE.replace("me/mine", "you/mine"))
    registry = AdapterRegistry([first, last])
    assert registry.get("mine").path == "you/mine"
    write(first, MINE.replace("name: mine", "name: other"))
    last.write_text("adapters: [")
    with pytest.raises(ConfigError, match=r"last\.yaml"):
        registry.reload()
    assert registry.get("mine").path == "you/mine"
    assert "other" not in {entry.name for entry in registry}


def test_entry_may_say_more_and_cannot_be_changed(tmp_path: Path) -> None:
    fields = "description: reads contracts, pinned: true}"
    registry = AdapterRegistry([write(tmp_path / "mine.yaml", MINE.replace("}", f", {fields}"))])
    entry = registry.get("mine")
    assert (entry.description, entry.pinned) == ("reads contracts", True)
    with pytest.raises(ValidationError, match="frozen"):
        entry.path = "elsewhere"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        AdapterRegistry([tmp_path / "none.yaml"])
