"""What cannot be merged is refused by name, and nothing is left of it."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from latentmas_core.errors import AdapterError, ConfigError
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.merge_options import MergeMethod, MergeOptions
from latentmas_core.lora.merging import MergeInput, merge_adapters
from tests.lora.adapters import make_adapter
from tests.lora.merges import (
    MAX_RANK,
    Family,
    by_options,
    cast,
    merge,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"method": "blend"}, "method", "'blend'; allowed are linear, cat, svd, ties, dare"),
        ({"method": "ties"}, "density", "density is missing; method 'ties'"),
        ({"method": "dare"}, "density", "density is missing; method 'dare'"),
        ({"method": "ties", "density": 0.0}, "density", "0.0; it must be above 0 and at most 1"),
        ({"method": "dare", "density": 1.5}, "density", "1.5; it must be above 0 and at most 1"),
        ({"method": "ties", "density": float("nan")}, "density", "nan; it must be above 0"),
        ({"method": "ties", "density": True}, "density", "True; it must be above 0"),
        ({"method": "linear", "density": 0.5}, "density", "belongs to ties, dare, dare_ties"),
        ({"method": "cat", "rank": 4}, "rank", "rank is 4, .* belongs to svd. Leave it out"),
        ({"method": "svd", "rank": 0}, "rank", "rank is 0; it must be a whole number, at least 1"),
        ({"method": "svd", "rank": 2.0}, "rank", "rank is 2.0; it must be a whole number"),
        ({"method": "ties", "density": 1.0, "seed": 1}, "seed", "belongs to dare, dare_ties"),
        ({"method": "dare", "density": 0.5, "seed": -1}, "seed", "-1; it must be a whole number"),
        (
            {"method": "dare", "density": 0.5, "majority_sign": "total"},
            "majority_sign",
            "belongs to ties, dare_ties",
        ),
        (
            {"method": "ties", "density": 0.5, "majority_sign": "median"},
            "majority_sign",
            "'median'; allowed are total, frequency",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MergeOptions(**options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("weights", "param", "message"),
    [
        ((), "adapters", "0 of them; a merge takes at least 2"),
        ((1.0,), "adapters", "1 of them; a merge takes at least 2"),
        ((1.0, float("nan")), "weights", "nan for adapter .*; it must be a finite number"),
        ((float("-inf"), 1.0), "weights", "-inf for adapter"),
        ((1.0, "2"), "weights", "'2' for adapter"),
        ((1.0, True), "weights", "True for adapter"),
        ((1.0, 10**400), "weights", "for adapter"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path,
    base: BaseModel,
    equal: Family,
    weights: tuple[float, ...],
    param: str,
    message: str,
) -> None:
    options = MergeOptions(MergeMethod.LINEAR)
    with pytest.raises(ConfigError, match=message) as caught:
        merge(equal, tmp_path / "merged", base, options, weights=weights)
    assert caught.value.param == param
    assert not list(tmp_path.iterdir())


def test_adapter_that_changed_since_it_was_loaded_is_not_merged(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    inputs = [MergeInput(folder, 1.0, digest="0" * 64) for folder in equal]
    options = MergeOptions(MergeMethod.CAT)
    with pytest.raises(AdapterError, match="changed since it was loaded"):
        merge_adapters(inputs, tmp_path / "m", options=options, base=base, max_rank=MAX_RANK)
    assert not list(tmp_path.iterdir())


@by_options
@pytest.mark.parametrize("weight", [1e300, 1e308])
def test_weights_whose_result_no_number_can_hold_are_refused(
    tmp_path: Path, base: BaseModel, equal: Family, options: MergeOptions, weight: float
) -> None:
    with pytest.raises(ConfigError, match=r"give layers\.0\.self_attn.* Lower them") as caught:
        merge(equal, tmp_path / "merged", base, options, weights=(weight, weight, weight))
    assert caught.value.param == "weights"
    assert not list(tmp_path.iterdir())


def test_fp16_that_would_overflow_is_refused(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    folders = [cast(x, tmp_path / x.name, torch.float16) for x in equal]
    options = MergeOptions(MergeMethod.CAT)
    with pytest.raises(ConfigError, match=r"beyond 65504, the largest of torch\.float16"):
        merge(folders, tmp_path / "merged", base, options, weights=(1e7, 1.0, 1.0))


def test_cat_beyond_max_rank_is_refused(tmp_path: Path, base: BaseModel, equal: Family) -> None:
    with pytest.raises(ConfigError, match=r"ranks 8 \+ 8 \+ 8 gives rank 24; max_rank is 23"):
        merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.CAT), max_rank=23)
    merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.CAT), max_rank=24)


@pytest.mark.parametrize(("rank", "max_rank", "limit"), [(25, 64, 24), (17, 16, 16)])
def test_svd_rank_out_of_range_is_refused(
    tmp_path: Path, base: BaseModel, equal: Family, rank: int, max_rank: int, limit: int
) -> None:
    options = MergeOptions(MergeMethod.SVD, rank=rank)
    with pytest.raises(ConfigError, match=f"rank is {rank}; allowed are 1 to {limit}") as caught:
        merge(equal, tmp_path / "merged", base, options, max_rank=max_rank)
    assert caught.value.param == "rank"


def test_adapters_of_different_bases_are_refused(
    tmp_path: Path, tiny_qwen3: Path, base: BaseModel, equal: Family
) -> None:
    stranger = make_adapter(tmp_path / "stranger", tiny_qwen3)
    with pytest.raises(AdapterError, match=r"made for base model .*tiny-qwen3") as caught:
        merge((equal[0], stranger), tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    assert caught.value.param == "base_model_name_or_path"
    assert not (tmp_path / "merged").exists()


def test_output_that_exists_is_refused_and_left_as_it_is(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    kept = tmp_path / "merged" / "kept"
    kept.parent.mkdir()
    kept.write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("merged", "dangling"):
        with pytest.raises(ConfigError, match=f"output .*{name} exists; .* choose another"):
            merge(equal, tmp_path / name, base, MergeOptions(MergeMethod.LINEAR))
    assert kept.read_text() == "precious"


def test_output_in_no_folder_is_refused(tmp_path: Path, base: BaseModel, equal: Family) -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere, which is no folder\. Create it first"
    ) as caught:
        merge(equal, tmp_path / "nowhere" / "x", base, MergeOptions(MergeMethod.LINEAR))
    assert caught.value.param == "output"
    assert not list(tmp_path.iterdir())


# What a failure leaves behind.


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: BaseModel, equal: Family
) -> None:
    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"the first half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(ConfigError, match=r"cannot be written .*No space left") as caught:
        merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    assert caught.value.param == "output"
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: BaseModel, equal: Family
) -> None:
    def interrupt(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"the first half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    assert not list(tmp_path.iterdir())


def test_an_output_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: BaseModel, equal: Family
) -> None:
    save = safetensors.torch.save_file
    kept = tmp_path / "merged" / "kept"

    def save_late(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata=metadata)
        kept.parent.mkdir()
        kept.write_text("precious")

    monkeypatch.setattr(safetensors.torch, "save_file", save_late)
    with pytest.raises(ConfigError, match="cannot be written"):
        merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    assert list(tmp_path.iterdir()) == [kept.parent]
    assert kept.read_text() == "precious"
