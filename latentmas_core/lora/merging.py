"""Merges adapters of one base model into one: a new folder that is an adapter like any other.

The arithmetic of linear, ties and dare is that of ``peft.utils.merge_utils``. Knows no engine.
"""

import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.nn import functional as F

from latentmas_core.errors import AdapterError, ConfigError
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.checkpoint import (
    WEIGHTS_FILE,
    LoRACheckpoint,
    LoRAPair,
    read_checkpoint,
)
from latentmas_core.lora.merge_options import (
    MajoritySign,
    MergeMethod,
    MergeOptions,
    is_finite_number,
)

logger = logging.getLogger(__name__)

_HALF_DTYPES = (torch.float16, torch.bfloat16)


class MergeInput(NamedTuple):
    """An adapter and its factor. ``digest``: what it must still be, where it was read before."""

    folder: Path
    weight: float
    digest: str | None = None


class _Term(NamedTuple):
    """What one adapter adds to one linear layer: factor * b @ a, in fp32; factor with scaling."""

    pair: LoRAPair
    factor: float


def merge_adapters(
    inputs: Sequence[MergeInput],
    output: Path,
    *,
    options: MergeOptions,
    base: BaseModel,
    max_rank: int,
) -> Path:
    """Write the weighted merge of several adapters as a new one; returns ``output``.

    With f = weight * scaling of an adapter, for every linear layer that at least one changes:

        cat         B A = sum of f * B_i A_i, exactly; the rank is the sum of all ranks
        svd         the best approximation of that sum of a given rank (Eckart & Young 1936)
        linear      A = sum of sign(f) sqrt|f| * A_i and B = sum of sqrt|f| * B_i (task arithmetic,
                    Ilharco et al. 2023, on A and B apart, so that products mix)
        ties        the same sums, but of the largest values of each adapter only, of which those
                    count that have the sign of the majority (of unweighted values); divided by
                    how many count (Yadav et al. 2023)
        dare        linear, of what is left when values are dropped at random and the others
                    divided by density (Yu et al. 2023)
        dare_ties   values dropped as in dare, then signs elected as in ties

    The result is what ``PeftModel.add_weighted_adapter`` gives, except that

    - unequal ranks are allowed for linear, ties and dare, where PEFT refuses them: adapters are
      padded with zeros to the largest rank first, and density counts the zeros too;
    - the merged adapter has scaling 1 always; PEFT copies use_rslora of the first adapter, which
      makes its result sqrt(rank) times too large;
    - svd decomposes the small core of the product instead of the product, and refuses a rank
      beyond the sum of the ranks, which could only add zeros;
    - dare draws from a generator of its own, in PEFT's order, and not from torch's global one.

    As in PEFT an adapter that lacks a target takes no part there: it adds zero, has no vote on
    signs, and dare draws nothing for it. Merged in fp32 and saved so, or in the 16-bit dtype that
    all weights of all adapters have.

    max_rank: of each adapter and of the result. Nothing is left on disk when it fails. Raises
    AdapterError for an adapter that ``read_checkpoint`` refuses (broken, another base) or that has
    changed, ConfigError for all else.
    """
    _check_weights(inputs)
    _check_output(output)
    adapters = [_read(one, base, max_rank) for one in inputs]
    weights = [one.weight for one in inputs]
    rank = _merged_rank(adapters, options, max_rank)
    merged = _merge(adapters, weights, rank, options, base)
    targets = [target for target in base.targets if (0, target) in merged]
    _save(output, merged, _peft_config(rank, targets, adapters[0].base_model_name))
    logger.info("merged %d adapters by %s into %s", len(adapters), options.method, output)
    return output


def _read(one: MergeInput, base: BaseModel, max_rank: int) -> LoRACheckpoint:
    checkpoint = read_checkpoint(one.folder, base, max_rank=max_rank)
    if one.digest not in (None, checkpoint.digest):
        raise AdapterError(
            f"adapter {one.folder} cannot be merged: its files changed since it was loaded. Unload "
            "it and load it again.",
            param="adapters",
        )
    return checkpoint


def _merge(
    adapters: Sequence[LoRACheckpoint],
    weights: Sequence[float],
    rank: int,
    options: MergeOptions,
    base: BaseModel,
) -> dict[tuple[int, str], LoRAPair]:
    """By layer and target, in the order of the model's modules, as PEFT walks them."""
    dtype = _common_dtype(adapters)
    generator = torch.Generator().manual_seed(options.seed or 0)
    merged: dict[tuple[int, str], LoRAPair] = {}
    for layer in range(base.num_layers):
        for target in base.targets:
            place = layer, target
            terms = [
                _Term(_cast(adapter.weights[place], torch.float32), weight * adapter.scaling)
                for adapter, weight in zip(adapters, weights, strict=True)
                if place in adapter.weights
            ]
            if terms:
                pair = _merge_terms(terms, rank, options, generator)
                merged[place] = _checked(place, _cast(pair, dtype), weights)
    return merged


def _merge_terms(
    terms: Sequence[_Term], rank: int, options: MergeOptions, generator: torch.Generator
) -> LoRAPair:
    """a: [rank, in_features], b: [out_features, rank], with all factors in them."""
    if options.method == MergeMethod.CAT:
        return _padded(_concatenated(terms), rank)
    if options.method == MergeMethod.SVD:
        return _padded(_truncated(_concatenated(terms), rank), rank)
    pairs = [_padded(term.pair, rank) for term in terms]
    roots = [math.sqrt(abs(term.factor)) for term in terms]
    # The sign goes to one side only; on both it would cancel.
    signed = [math.copysign(root, term.factor) for root, term in zip(roots, terms, strict=True)]
    return LoRAPair(
        _combined([pair.a for pair in pairs], signed, options, generator),
        _combined([pair.b for pair in pairs], roots, options, generator),
    )


def _concatenated(terms: Sequence[_Term]) -> LoRAPair:
    """b @ a is the exact sum of all terms; its rank is the sum of theirs."""
    return LoRAPair(
        torch.cat([term.pair.a * term.factor for term in terms], dim=0),
        torch.cat([term.pair.b for term in terms], dim=1),
    )


def _truncated(pair: LoRAPair, rank: int) -> LoRAPair:
    """The nearest product of at most ``rank``; singular values go into b, as in PEFT.

    With a^T = Qa Ra and b = Qb Rb, b a = Qb (Rb Ra^T) Qa^T: the singular values of the product are
    those of a core of [sum of ranks, sum of ranks], thousands of times smaller than the layer.
    """
    q_a, r_a = torch.linalg.qr(pair.a.T)  # [in_features, k_a], [k_a, rank of pair]
    q_b, r_b = torch.linalg.qr(pair.b)  # [out_features, k_b], [k_b, rank of pair]
    core = r_b @ r_a.T  # [k_b, k_a]
    if not bool(torch.isfinite(core).all()):
        return pair  # not finite either: the caller says so, where the decomposition would fail
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    return LoRAPair(vh[:rank] @ q_a.T, (q_b @ u[:, :rank]) * s[:rank])


def _combined(
    tensors: Sequence[torch.Tensor],
    factors: Sequence[float],
    options: MergeOptions,
    generator: torch.Generator,
) -> torch.Tensor:
    """All tensors of one shape, which is the result's."""
    from peft.utils import merge_utils  # takes seconds to import, and few processes merge

    sparse = [_sparsified(tensor, options, generator) for tensor in tensors]
    weights = torch.tensor(factors, dtype=torch.float32)  # [num_adapters]
    if options.method in (MergeMethod.LINEAR, MergeMethod.DARE):
        return merge_utils.task_arithmetic(sparse, weights)
    stacked = torch.stack(sparse)  # [num_adapters, ...]
    sign = MajoritySign(options.majority_sign or MajoritySign.TOTAL)
    mask = merge_utils.calculate_majority_sign_mask(stacked, method=sign.value)
    weights = merge_utils.reshape_weight_task_tensors(stacked, weights)
    return merge_utils.disjoint_merge(stacked * weights, mask)


def _sparsified(
    tensor: torch.Tensor, options: MergeOptions, generator: torch.Generator
) -> torch.Tensor:
    from peft.utils import merge_utils

    density = options.density
    if density is None:
        return tensor
    if options.method == MergeMethod.TIES:
        return merge_utils.magnitude_based_pruning(tensor, density)
    # merge_utils.random_pruning, but with a generator.
    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density


def _padded(pair: LoRAPair, rank: int) -> LoRAPair:
    num_missing = rank - pair.a.shape[0]
    return LoRAPair(F.pad(pair.a, (0, 0, 0, num_missing)), F.pad(pair.b, (0, num_missing)))


def _cast(pair: LoRAPair, dtype: torch.dtype) -> LoRAPair:
    return LoRAPair(pair.a.to(dtype), pair.b.to(dtype))


def _common_dtype(adapters: Sequence[LoRACheckpoint]) -> torch.dtype:
    """The 16-bit dtype that all weights have, else fp32: bf16 and fp16 do not hold each other."""
    dtypes = {
        matrix.dtype for adapter in adapters for pair in adapter.weights.values() for matrix in pair
    }
    only = dtypes.pop()
    return only if not dtypes and only in _HALF_DTYPES else torch.float32


def _checked(place: tuple[int, str], pair: LoRAPair, weights: Sequence[float]) -> LoRAPair:
    if not all(bool(torch.isfinite(matrix).all()) for matrix in pair):
        layer, target = place
        raise ConfigError(
            f"weights {', '.join(map(str, weights))} give layers.{layer}.{target} numbers beyond "
            f"{torch.finfo(pair.a.dtype).max:g}, the largest of {pair.a.dtype}. Lower them.",
            param="weights",
        )
    return pair


def _merged_rank(adapters: Sequence[LoRACheckpoint], options: MergeOptions, max_rank: int) -> int:
    ranks = [adapter.rank for adapter in adapters]
    if options.method == MergeMethod.CAT:
        if sum(ranks) > max_rank:
            raise ConfigError(
                f"method 'cat' of ranks {' + '.join(map(str, ranks))} gives rank {sum(ranks)}; "
                f"max_rank is {max_rank}. Raise max_rank, or use 'svd', which chooses its rank.",
                param="max_rank",
            )
        return sum(ranks)
    rank = max(ranks) if options.rank is None else options.rank
    limit = min(max_rank, sum(ranks))
    if rank > limit:
        raise ConfigError(
            f"rank is {rank}; allowed are 1 to {limit}: max_rank is {max_rank}, and the ranks of "
            f"the adapters, {', '.join(map(str, ranks))}, add up to {sum(ranks)}. Lower it.",
            param="rank",
        )
    return rank


def _peft_config(rank: int, targets: list[str], base_model_name: str) -> Any:
    """A ``peft.LoraConfig`` of scaling 1."""
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        base_model_name_or_path=base_model_name,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
    # Given above it would become a set, and the file would differ from run to run.
    config.target_modules = targets
    return config


def _save(output: Path, merged: Mapping[tuple[int, str], LoRAPair], config: Any) -> None:
    """All or nothing: written beside ``output``, then renamed to it."""
    tensors = {
        f"base_model.model.model.layers.{layer}.{target}.lora_{matrix}.weight": tensor.contiguous()
        for (layer, target), pair in merged.items()
        for matrix, tensor in zip("AB", pair, strict=True)
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".merging-", dir=output.parent) as unfinished:
            # A folder within: the temporary one itself may be read by its owner only.
            folder = Path(unfinished) / "adapter"
            config.save_pretrained(folder)
            safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            folder.rename(output)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"output {output} cannot be written ({error}); nothing of it is left. Check its disk "
            "and permissions, or choose another.",
            param="output",
        ) from error


def _check_weights(inputs: Sequence[MergeInput]) -> None:
    if len(inputs) < 2:
        raise ConfigError(
            f"adapters has {len(inputs)} of them; a merge takes at least 2. Name another.",
            param="adapters",
        )
    for one in inputs:
        if not is_finite_number(one.weight):
            raise ConfigError(
                f"weights has {one.weight!r} for adapter {one.folder}; it must be a finite number, "
                "negative to subtract. Give another.",
                param="weights",
            )


def _check_output(output: Path) -> None:
    if os.path.lexists(output):
        raise ConfigError(
            f"output {output} exists; a merge overwrites nothing. Remove it, or choose another.",
            param="output",
        )
    if not output.parent.is_dir():
        raise ConfigError(
            f"output {output} would lie in {output.parent}, which is no folder. Create it first.",
            param="output",
        )
