"""A merged adapter is what PEFT's ``add_weighted_adapter`` makes, and an adapter like any other."""

import json
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from latentmas_core.engine.quiet import quiet_transformers
from latentmas_core.errors import AdapterError, ConfigError
from latentmas_core.lora.base_model import BaseModel, describe_base
from latentmas_core.lora.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoRACheckpoint,
    read_checkpoint,
)
from latentmas_core.lora.merge_options import MajoritySign, MergeMethod, MergeOptions
from latentmas_core.lora.merging import merge_adapters
from tests.engine.engines import OpenEngine
from tests.lora.adapters import greedy_ids, lone_peft, make_adapter
from tests.lora.speaking import PROMPT, speak

WEIGHTS = (0.7, -0.4, 1.2)
MAX_RANK = 64
SEED = 11
ATTENTION = ("q_proj", "k_proj", "v_proj")
RSLORA = {"use_rslora": True, "lora_alpha": 4}

OPTIONS = (
    MergeOptions(MergeMethod.LINEAR),
    MergeOptions(MergeMethod.CAT),
    MergeOptions(MergeMethod.SVD, rank=6),
    MergeOptions(MergeMethod.TIES, density=0.4),
    MergeOptions(MergeMethod.TIES, density=0.4, majority_sign=MajoritySign.FREQUENCY),
    MergeOptions(MergeMethod.DARE, density=0.4, seed=SEED),
    MergeOptions(MergeMethod.DARE_TIES, density=0.4, seed=SEED),
    MergeOptions(
        MergeMethod.DARE_TIES, density=0.4, seed=SEED, majority_sign=MajoritySign.FREQUENCY
    ),
)
ELEMENTWISE = tuple(x for x in OPTIONS if x.method not in (MergeMethod.CAT, MergeMethod.SVD))

Family = tuple[Path, ...]
by_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda x: _label(x))


def _label(options: MergeOptions) -> str:
    return f"{options.method}-{options.majority_sign or 'total'}"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices of this size only wait for a second one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> BaseModel:
    return base_of(tiny_llama)


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Family:
    """Of one rank, each with another scaling."""
    folder = tmp_path_factory.mktemp("equal")
    return tuple(
        make_adapter(folder / str(x), tiny_llama, rank=8, seed=x, std=0.03, lora_alpha=alpha)
        for x, alpha in enumerate((16, 8, 4))
    )


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Family:
    """Of three ranks, one with rsLoRA, one that lacks some targets.

    Weak ones: with stronger ones the logits of PEFT's own svd, computed in fp32, are more than 1e-5
    from those of fp64.
    """
    folder = tmp_path_factory.mktemp("unequal")
    return (
        make_adapter(folder / "4", tiny_llama, rank=4, seed=1, std=0.02),
        make_adapter(folder / "1", tiny_llama, rank=1, seed=2, std=0.02, targets=ATTENTION),
        make_adapter(folder / "16", tiny_llama, rank=16, seed=3, std=0.02, **RSLORA),
    )


def base_of(model: Path) -> BaseModel:
    return describe_base(str(model), lone_base(model).model.layers)


def lone_base(model: Path) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def merge(
    folders: Sequence[Path],
    output: Path,
    base: BaseModel,
    options: MergeOptions,
    *,
    weights: Sequence[float] = WEIGHTS,
    max_rank: int = MAX_RANK,
) -> LoRACheckpoint:
    """Merges, and reads what was written as any adapter is read."""
    written = merge_adapters(
        folders, weights[: len(folders)], output, options=options, base=base, max_rank=max_rank
    )
    assert written == output
    return read_checkpoint(output, base, max_rank=max_rank)


def peft_merge(model: Path, folders: Sequence[Path], options: MergeOptions) -> Any:
    """The oracle: PEFT's own merge, as the active adapter ``merged``."""
    peft = lone_peft(model, folders[0], name="0")
    for index, folder in enumerate(folders[1:], start=1):
        peft.load_adapter(folder, adapter_name=str(index))
    inject = peft.base_model.inject_adapter

    def inject_and_seed(*args: Any, **kwargs: Any) -> None:
        inject(*args, **kwargs)  # draws initial weights that nothing needs
        torch.manual_seed(SEED)

    peft.base_model.inject_adapter = inject_and_seed
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density 1.0 is greater")
        peft.base_model.add_weighted_adapter(
            [str(index) for index in range(len(folders))],
            list(WEIGHTS[: len(folders)]),
            "merged",
            combination_type="dare_linear"
            if options.method == MergeMethod.DARE
            else options.method,
            svd_rank=options.rank,
            density=options.density,
            majority_sign_method=str(options.majority_sign or "total"),
        )
    peft.set_adapter("merged")
    return peft.eval()


def logits_of(peft: Any) -> torch.Tensor:
    with torch.inference_mode():
        return peft(input_ids=torch.tensor([PROMPT])).logits  # [1, num_tokens, vocab_size]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def assert_equals_peft(
    merged: LoRACheckpoint, output: Path, model: Path, oracle: Any, *, are_signs_free: bool
) -> None:
    """Weights and logits. Singular vectors have free signs: there the product is compared."""
    layers = oracle.base_model.model.model.layers
    for (layer, target), pair in merged.weights.items():
        module = layers[layer].get_submodule(target)
        a, b = (matrix["merged"].weight.data for matrix in (module.lora_A, module.lora_B))
        assert_close(pair.b @ pair.a, b @ a)
        if not are_signs_free:
            torch.testing.assert_close(pair.a, a, rtol=1e-6, atol=0)
            torch.testing.assert_close(pair.b, b, rtol=1e-6, atol=0)
    assert_close(logits_of(lone_peft(model, output)), logits_of(oracle))


def padded(folder: Path, output: Path, rank: int) -> Path:
    """The same adapter with rows and columns of zeros up to ``rank``, and the same scaling."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    divisor = config["r"] ** (0.5 if config["use_rslora"] else 1.0)
    scaling = config["lora_alpha"] / divisor
    missing = rank - config["r"]
    tensors = {
        name: F.pad(tensor, (0, 0, 0, missing) if "lora_A" in name else (0, missing))
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
    }
    output.mkdir()
    save_file(tensors, output / WEIGHTS_FILE)
    changed = {"r": rank, "lora_alpha": scaling * rank, "use_rslora": False}
    (output / CONFIG_FILE).write_text(json.dumps(config | changed))
    return output


def cast(folder: Path, output: Path, dtype: torch.dtype) -> Path:
    output.mkdir()
    tensors = {name: x.to(dtype) for name, x in load_file(folder / WEIGHTS_FILE).items()}
    save_file(tensors, output / WEIGHTS_FILE)
    (output / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    return output


# What PEFT computes.


@by_options
def test_merge_of_equal_ranks_is_that_of_peft(
    tmp_path: Path, tiny_llama: Path, base: BaseModel, equal: Family, options: MergeOptions
) -> None:
    merged = merge(equal, tmp_path / "merged", base, options)
    oracle = peft_merge(tiny_llama, equal, options)
    is_svd = options.method == MergeMethod.SVD
    assert_equals_peft(merged, tmp_path / "merged", tiny_llama, oracle, are_signs_free=is_svd)


@pytest.mark.parametrize("options", ELEMENTWISE, ids=_label)
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


# What is refused.


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
    ("num_folders", "weights", "param", "message"),
    [
        (0, (), "folders", "0 adapters; a merge takes at least 2"),
        (1, (1.0,), "folders", "1 adapters; a merge takes at least 2"),
        (2, (1.0,), "weights", "1 numbers for 2 adapters"),
        (2, (1.0, 2.0, 3.0), "weights", "3 numbers for 2 adapters"),
        (2, (1.0, float("nan")), "weights", "nan for adapter .*; it must be a finite number"),
        (2, (float("-inf"), 1.0), "weights", "-inf for adapter"),
        (2, (1.0, "2"), "weights", "'2' for adapter"),
        (2, (1.0, True), "weights", "True for adapter"),
        (2, (1.0, 10**400), "weights", "for adapter"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path,
    base: BaseModel,
    equal: Family,
    num_folders: int,
    weights: tuple[float, ...],
    param: str,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        merge_adapters(
            equal[:num_folders],
            weights,
            tmp_path / "merged",
            options=MergeOptions(MergeMethod.LINEAR),
            base=base,
            max_rank=MAX_RANK,
        )
    assert caught.value.param == param
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
