"""A merged adapter is what PEFT's ``add_weighted_adapter`` makes, and an adapter like any other."""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from latentmas_core.lora.adapter_config import CONFIG_FILE
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.checkpoint import (
    LoRACheckpoint,
    read_checkpoint,
)
from latentmas_core.lora.merge_options import MergeMethod, MergeOptions
from tests.engine.engines import OpenEngine
from tests.lora.adapters import greedy_ids, lone_peft, make_adapter
from tests.lora.merges import (
    ELEMENTWISE,
    MAX_RANK,
    WEIGHTS,
    Family,
    assert_close,
    assert_equals_peft,
    base_of,
    by_options,
    cast,
    label_of,
    logits_of,
    lone_base,
    merge,
    padded,
    peft_merge,
)
from tests.lora.speaking import PROMPT, speak

pytestmark = pytest.mark.usefixtures("one_thread")


# What PEFT computes.


@by_options
def test_merge_of_equal_ranks_is_that_of_peft(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, equal: Family, options: MergeOptions
) -> None:
    merged = merge(equal, tmp_path / "merged", base, options)
    oracle = peft_merge(tiny_llama, equal, options)
    is_svd = options.method == MergeMethod.SVD
    assert_equals_peft(merged, tmp_path / "merged", tiny_llama, oracle, are_signs_free=is_svd)


@pytest.mark.parametrize("options", ELEMENTWISE, ids=label_of)
def test_merge_of_unequal_ranks_is_that_of_peft_over_adapters_padded_with_zeros(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, unequal: Family, options: MergeOptions
) -> None:
    merged = merge(unequal, tmp_path / "merged", base, options)
    same_rank = [padded(x, tmp_path / x.name, 16) for x in unequal]
    oracle = peft_merge(tiny_llama, same_rank, options)
    assert merged.rank == 16
    assert_equals_peft(merged, tmp_path / "merged", tiny_llama, oracle, are_signs_free=False)


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        (MergeOptions(MergeMethod.CAT), 21),
        (MergeOptions(MergeMethod.SVD), 16),
        (MergeOptions(MergeMethod.SVD, rank=2), 2),
        (MergeOptions(MergeMethod.SVD, rank=21), 21),
    ],
    ids=["cat", "svd", "svd-2", "svd-21"],
)
def test_cat_and_svd_of_unequal_ranks_are_those_of_peft(
    tmp_path: Path,
    tiny_llama: Path,
    base: BaseModel,
    unequal: Family,
    options: MergeOptions,
    rank: int,
) -> None:
    merged = merge(unequal, tmp_path / "merged", base, options)
    oracle = peft_merge(tiny_llama, unequal, options)
    assert merged.rank == rank
    is_svd = options.method == MergeMethod.SVD
    assert_equals_peft(merged, tmp_path / "merged", tiny_llama, oracle, are_signs_free=is_svd)


@pytest.mark.parametrize("model", ["tiny_qwen2", "tiny_qwen3"])
@pytest.mark.parametrize("method", [MergeMethod.LINEAR, MergeMethod.CAT])
def test_other_architectures_merge_as_in_peft(
    tmp_path: Path, request: pytest.FixtureRequest, model: str, method: MergeMethod
) -> None:
    path: Path = request.getfixturevalue(model)
    folders = [make_adapter(tmp_path / str(x), path, seed=x, std=0.05) for x in range(2)]
    merged = merge(folders, tmp_path / "merged", base_of(path), MergeOptions(method))
    oracle = peft_merge(path, folders, MergeOptions(method))
    assert_equals_peft(merged, tmp_path / "merged", path, oracle, are_signs_free=False)


@pytest.mark.parametrize("method", [MergeMethod.TIES, MergeMethod.DARE, MergeMethod.DARE_TIES])
def test_density_of_one_keeps_every_value(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, equal: Family, method: MergeMethod
) -> None:
    options = MergeOptions(method, density=1.0)
    merged = merge(equal, tmp_path / "merged", base, options)
    oracle = peft_merge(tiny_llama, equal, options)
    assert_equals_peft(merged, tmp_path / "merged", tiny_llama, oracle, are_signs_free=False)


def test_scaling_is_one_where_peft_keeps_rslora_of_the_first(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, unequal: Family
) -> None:
    options = MergeOptions(MergeMethod.CAT)
    backwards = unequal[::-1]
    merged = merge(backwards, tmp_path / "merged", base, options)
    oracle = peft_merge(tiny_llama, backwards, options)
    modules = [x for x in oracle.modules() if isinstance(x, LoraLayer)]
    assert modules[0].scaling["merged"] == pytest.approx(21**0.5), "PEFT mended it: say so no more"
    for module in modules:
        module.scaling["merged"] = 1.0
    assert merged.scaling == 1.0
    assert_equals_peft(merged, tmp_path / "merged", tiny_llama, oracle, are_signs_free=False)


# What the formulas say.


def delta(adapter: LoRACheckpoint, place: tuple[int, str]) -> torch.Tensor | float:
    """What an adapter adds to a weight: [out_features, in_features]; 0 where it adds nothing."""
    pair = adapter.weights.get(place)
    return 0.0 if pair is None else adapter.scaling * (pair.b @ pair.a)


def sum_of(folders: Sequence[Path], base: BaseModel, place: tuple[int, str]) -> torch.Tensor:
    adapters = [read_checkpoint(folder, base, max_rank=MAX_RANK) for folder in folders]
    terms = [w * delta(adapter, place) for w, adapter in zip(WEIGHTS, adapters, strict=True)]
    return torch.as_tensor(sum(terms))


def test_cat_is_the_exact_sum(tmp_path: Path, base: BaseModel, unequal: Family) -> None:
    merged = merge(unequal, tmp_path / "merged", base, MergeOptions(MergeMethod.CAT))
    for place in merged.weights:
        assert_close(torch.as_tensor(delta(merged, place)), sum_of(unequal, base, place))


@pytest.mark.parametrize("rank", [1, 5, 21])
def test_svd_is_as_near_as_its_rank_allows(
    tmp_path: Path, base: BaseModel, unequal: Family, rank: int
) -> None:
    merged = merge(unequal, tmp_path / "merged", base, MergeOptions(MergeMethod.SVD, rank=rank))
    for place in merged.weights:
        exact = sum_of(unequal, base, place)
        distance = torch.linalg.norm(exact - delta(merged, place))
        lost = torch.linalg.svdvals(exact)[rank:]
        assert_close(distance, torch.linalg.norm(lost))


def test_svd_rank_beyond_the_sides_of_a_layer_is_filled_with_zeros(
    tmp_path: Path, tiny_llama: Path, base: BaseModel
) -> None:
    folders = [
        make_adapter(tmp_path / str(x), tiny_llama, rank=33, seed=x, std=0.05) for x in range(2)
    ]
    merged = merge(folders, tmp_path / "merged", base, MergeOptions(MergeMethod.SVD))
    pair = merged.weights[0, "self_attn.k_proj"]  # [32, 64]
    assert pair.a.shape == (33, 64)
    assert not pair.a[32:].any()


def test_an_adapter_that_lacks_a_target_adds_nothing_there(
    tmp_path: Path, tiny_llama: Path, base: BaseModel
) -> None:
    query, value = (
        make_adapter(tmp_path / x, tiny_llama, targets=(f"{x}_proj",), std=0.05) for x in "qv"
    )
    merged = merge((query, value), tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    assert merged.targets == ("self_attn.q_proj", "self_attn.v_proj")
    alone = read_checkpoint(value, base, max_rank=MAX_RANK)
    place = (1, "self_attn.v_proj")
    expected = WEIGHTS[1] * delta(alone, place)
    assert_close(torch.as_tensor(delta(merged, place)), torch.as_tensor(expected))


def test_weights_of_zero_make_an_adapter_that_changes_nothing(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, equal: Family
) -> None:
    options = MergeOptions(MergeMethod.SVD)
    merge(equal[:2], tmp_path / "merged", base, options, weights=(0.0, 0))
    assert_close(
        logits_of(lone_peft(tiny_llama, tmp_path / "merged")), logits_of(lone_base(tiny_llama))
    )


# What dare draws.


def test_dare_of_one_seed_gives_the_same_files_and_of_another_gives_others(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    digests = {
        name: merge(
            equal, tmp_path / name, base, MergeOptions(MergeMethod.DARE, density=0.5, seed=seed)
        ).digest
        for name, seed in {"one": 1, "again": 1, "two": 2, "left-out": None, "zero": 0}.items()
    }
    assert digests["one"] == digests["again"]
    assert digests["left-out"] == digests["zero"]
    assert len(set(digests.values())) == 3


def test_dare_leaves_the_global_generator_alone(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    before = torch.get_rng_state()
    merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.DARE, density=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_dare_keeps_the_share_that_density_says(
    tmp_path: Path, tiny_llama: Path, base: BaseModel
) -> None:
    first = make_adapter(tmp_path / "first", tiny_llama, targets=("up_proj",))
    second = make_adapter(tmp_path / "second", tiny_llama, targets=("q_proj",))
    options = MergeOptions(MergeMethod.DARE, density=0.3)
    merged = merge((first, second), tmp_path / "merged", base, options)
    values = torch.cat([matrix.flatten() for pair in merged.weights.values() for matrix in pair])
    share = float((values != 0).float().mean())
    assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / len(values)) ** 0.5)


# What is written.


@by_options
def test_merged_adapter_reads_as_any_other(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, equal: Family, options: MergeOptions
) -> None:
    merged = merge(equal, tmp_path / "merged", base, options)
    assert merged.scaling == 1.0
    assert merged.base_model_name == str(tiny_llama)
    assert merged.targets == tuple(base.targets)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["merged"], "no unfinished folder is left"


def test_merged_adapter_can_be_merged_again(tmp_path: Path, base: BaseModel, equal: Family) -> None:
    options = MergeOptions(MergeMethod.CAT)
    merge(equal[:2], tmp_path / "once", base, options)
    again = merge((tmp_path / "once", equal[2]), tmp_path / "twice", base, options, weights=(1, 1))
    assert again.rank == 24


async def test_engine_speaks_with_a_merged_adapter_as_peft_does(
    tmp_path: Path, open_engine: OpenEngine, tiny_llama: Path, base: BaseModel, unequal: Family
) -> None:
    output = tmp_path / "merged"
    merge(unequal, output, base, MergeOptions(MergeMethod.CAT))
    engine = open_engine(tiny_llama)
    await engine.load_adapter("merged", output)
    answer = await speak(engine, "merged")
    assert answer == greedy_ids(lone_peft(tiny_llama, output), PROMPT, len(answer))


def test_files_do_not_depend_on_the_order_of_a_set(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    config = json.loads((tmp_path / "merged" / CONFIG_FILE).read_text())
    assert config["target_modules"] == list(base.targets)


def test_merged_folder_has_the_rights_of_any_new_folder(
    tmp_path: Path, base: BaseModel, equal: Family
) -> None:
    merge(equal, tmp_path / "merged", base, MergeOptions(MergeMethod.LINEAR))
    (tmp_path / "other").mkdir()
    rights = [stat.S_IMODE(os.stat(tmp_path / x).st_mode) for x in ("merged", "other")]
    assert rights[0] == rights[1]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.float16, torch.float16), torch.float16),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float64, torch.float64), torch.float32),
    ],
)
def test_dtype_is_16_bit_only_where_all_have_it(
    tmp_path: Path,
    base: BaseModel,
    unequal: Family,
    dtypes: tuple[torch.dtype, torch.dtype],
    expected: torch.dtype,
) -> None:
    folders = [
        cast(folder, tmp_path / str(index), dtype)
        for index, (folder, dtype) in enumerate(zip(unequal[:2], dtypes, strict=True))
    ]
    merged = merge(folders, tmp_path / "merged", base, MergeOptions(MergeMethod.CAT))
    assert {matrix.dtype for pair in merged.weights.values() for matrix in pair} == {expected}


def test_16_bit_adapters_are_merged_in_fp32_as_in_peft(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, equal: Family
) -> None:
    folders = [cast(x, tmp_path / x.name, torch.bfloat16) for x in equal]
    options = MergeOptions(MergeMethod.LINEAR)
    merged = merge(folders, tmp_path / "merged", base, options)
    layers = peft_merge(tiny_llama, folders, options).base_model.model.model.layers
    for (layer, target), pair in merged.weights.items():
        lora_a = layers[layer].get_submodule(target).lora_A["merged"].weight
        assert torch.equal(pair.a, lora_a.to(torch.bfloat16)), f"layer {layer} {target}"
