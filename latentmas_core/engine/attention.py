"""Attention of a ragged step over paged keys and values, as transformers' modules call it.

All rows of all sequences stand in one flat batch. The function registered here writes the rows'
keys and values into the blocks and lets every row attend to the slots of its own sequence up to
itself. What depends on the step but not on the layer is prepared once, in ``AttentionBatch``.

Two ways to read the blocks: ``varlen_attn`` reads pages where they are (CUDA, where this torch has
it), and gathering pages before ``scaled_dot_product_attention`` (everywhere; its oracle).
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from latentmas_core.engine.kv_pool import LayerStates, Pool, max_state

logger = logging.getLogger(__name__)

ATTENTION_NAME = "latentmas_paged"


class SequenceRows(NamedTuple):
    """The rows of one sequence in a step: ``num_rows`` of them behind ``num_context`` slots."""

    block_table: Sequence[int]
    num_context: int
    num_rows: int

    @property
    def num_slots(self) -> int:
        return self.num_context + self.num_rows


@dataclass
class GatheredRows:
    """Consecutive rows of the batch that are attended in one call of SDPA.

    blocks: the ids of all blocks, sequence after sequence, or the first slot where one sequence has
    neighbouring blocks: those are read without copying. mask: additive, broadcastable to
    [num_sequences, 1, num_heads_per_group * num_rows, max_slots], or None where all is visible.
    """

    start: int
    end: int
    num_sequences: int
    blocks: torch.Tensor | int
    max_slots: int
    mask: torch.Tensor | None

    def to(self, device: torch.device) -> "GatheredRows":
        return replace(
            self,
            blocks=self.blocks if isinstance(self.blocks, int) else self.blocks.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )


@dataclass
class PagedRows:
    """Arguments of ``varlen_attn`` for the whole step; all tensors int32 on the device."""

    cu_seq_q: torch.Tensor  # [num_sequences + 1]
    seqused_k: torch.Tensor  # [num_sequences]
    block_table: torch.Tensor  # [num_sequences, max_blocks]
    max_q: int
    max_k: int

    def to(self, device: torch.device) -> "PagedRows":
        return replace(
            self,
            cu_seq_q=self.cu_seq_q.to(device),
            seqused_k=self.seqused_k.to(device),
            block_table=self.block_table.to(device),
        )


@dataclass
class AttentionBatch:
    """One step: where its rows are written, and how they read.

    ``is_guarded``: its rows may overflow, for some have adapters; what is written is made finite.
    """

    pool: Pool
    slot_mapping: torch.Tensor  # [num_rows]
    gathered: list[GatheredRows]
    paged: PagedRows | None
    is_guarded: bool = False

    def to(self, device: torch.device) -> "AttentionBatch":
        """The same step for the layers on another device."""
        return AttentionBatch(
            self.pool,
            self.slot_mapping.to(device),
            [rows.to(device) for rows in self.gathered],
            None if self.paged is None else self.paged.to(device),
            self.is_guarded,
        )


def prepare_batch(
    sequences: Sequence[SequenceRows], pool: Pool, *, num_groups: int, is_paged: bool
) -> AttentionBatch:
    """``sequences`` in the order of their rows, those with one row first.

    num_groups: query heads per key head.
    """
    slot_mapping = torch.cat(
        [pool.slots(s.block_table, s.num_context, s.num_slots) for s in sequences]
    )
    if is_paged:
        return AttentionBatch(pool, slot_mapping, [], _prepare_paged(sequences, pool))
    return AttentionBatch(pool, slot_mapping, _prepare_gathered(sequences, pool, num_groups), None)


def paged_attention(
    batch: AttentionBatch,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
) -> torch.Tensor:
    """Write the rows' keys and values, attend. Knows nothing of the model but head counts.

    query: [num_rows, num_heads, head_dim]; key, value: [num_rows, num_kv_heads, head_dim].
    Returns [num_rows, num_heads, head_dim].
    """
    keys, values = batch.pool.layer_keys[layer_idx], batch.pool.layer_values[layer_idx]
    if batch.is_guarded:
        key, value = _guarded(key), _guarded(value)
    keys.slots.index_copy_(0, batch.slot_mapping, key)
    values.slots.index_copy_(0, batch.slot_mapping, value)
    if batch.paged is not None:
        return _attend_paged(batch.paged, query, keys.pages, values.pages, scaling)
    outputs = [_attend_gathered(rows, query, keys, values, scaling) for rows in batch.gathered]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _guarded(states: torch.Tensor) -> torch.Tensor:
    """Harmless to those that have them masked; whose rows overflow is found out at the end."""
    limit = max_state(states.dtype)
    return states.clamp(-limit, limit).nan_to_num_(nan=0.0)


def paged_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    batch: AttentionBatch,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``paged_attention`` in the shape of transformers' attention interface.

    query: [1, num_heads, num_rows, head_dim]; key, value: [1, num_kv_heads, num_rows, head_dim].
    Returns [1, num_rows, num_heads, head_dim].
    """
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    heads_last = [states[0].transpose(0, 1) for states in (query, key, value)]
    output = paged_attention(batch, layer_idx, *heads_last, scaling=scaling)
    return output[None], None


AttentionInterface.register(ATTENTION_NAME, paged_attention_forward)


def can_read_pages(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch's ``varlen_attn`` reads paged keys on this device: asked and tried."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    if "block_table" not in inspect.signature(varlen_attn).parameters:
        return False
    try:
        _try_paged(device, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        logger.warning("varlen_attn does not read pages here (%s); pages are gathered", error)
        return False
    return True


PAGED_BLOCK_SIZE = 256  # what the flash kernels behind varlen_attn accept as a page


def _try_paged(device: torch.device, dtype: torch.dtype) -> None:
    query = torch.zeros(1, 2, 64, device=device, dtype=dtype)
    pages = torch.zeros(1, PAGED_BLOCK_SIZE, 1, 64, device=device, dtype=dtype)
    rows = PagedRows(
        cu_seq_q=torch.tensor([0, 1], device=device, dtype=torch.int32),
        seqused_k=torch.tensor([1], device=device, dtype=torch.int32),
        block_table=torch.zeros(1, 1, device=device, dtype=torch.int32),
        max_q=1,
        max_k=PAGED_BLOCK_SIZE,
    )
    _attend_paged(rows, query, pages, pages, 1.0)


def _attend_paged(
    rows: PagedRows, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query.contiguous(),
        keys,
        values,
        rows.cu_seq_q,
        None,
        rows.max_q,
        rows.max_k,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=True,
        seqused_k=rows.seqused_k,
        block_table=rows.block_table,
        num_splits=1,
    )
    assert isinstance(output, torch.Tensor), "varlen_attn returns more only when asked to"
    return output


def _attend_gathered(
    rows: GatheredRows, query: torch.Tensor, keys: LayerStates, values: LayerStates, scaling: float
) -> torch.Tensor:
    """The query heads that share a key head become extra query rows: no key is repeated."""
    num_kv_heads, head_dim = keys.pages.shape[2:]
    num_rows = rows.end - rows.start
    is_chunk = num_rows > rows.num_sequences
    query = query.narrow(0, rows.start, num_rows)
    if is_chunk:  # [num_rows, H_kv * G, D] -> [H_kv, G, num_rows, D]
        query = query.view(num_rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    output = F.scaled_dot_product_attention(
        query.reshape(rows.num_sequences, num_kv_heads, -1, head_dim),
        _gather(keys, rows),
        _gather(values, rows),
        attn_mask=rows.mask,
        scale=scaling,
    )
    if is_chunk:
        output = output.view(num_kv_heads, -1, num_rows, head_dim).permute(2, 0, 1, 3)
    return output.reshape(num_rows, -1, head_dim)


def _gather(states: LayerStates, rows: GatheredRows) -> torch.Tensor:
    """What the sequences read: [num_sequences, num_kv_heads, max_slots, head_dim]."""
    if isinstance(rows.blocks, int):
        return states.heads.narrow(2, rows.blocks, rows.max_slots)
    num_kv_heads, head_dim = states.pages.shape[2:]
    gathered = states.pages.index_select(0, rows.blocks)
    gathered = gathered.view(rows.num_sequences, -1, num_kv_heads, head_dim)
    return gathered.narrow(1, 0, rows.max_slots).transpose(1, 2)


def _prepare_paged(sequences: Sequence[SequenceRows], pool: Pool) -> PagedRows:
    ends = torch.tensor([0, *(s.num_rows for s in sequences)]).cumsum(0)
    num_slots = [s.num_slots for s in sequences]
    return PagedRows(
        cu_seq_q=ends.to(pool.device, torch.int32),
        seqused_k=torch.tensor(num_slots, dtype=torch.int32).to(pool.device),
        block_table=_padded_tables(sequences, pool).to(pool.device, torch.int32),
        max_q=max(s.num_rows for s in sequences),
        max_k=max(num_slots),
    )


def _prepare_gathered(
    sequences: Sequence[SequenceRows], pool: Pool, num_groups: int
) -> list[GatheredRows]:
    num_single = sum(s.num_rows == 1 for s in sequences)
    batches = [_gather_single(sequences[:num_single], pool)] if num_single else []
    batches += [_gather_chunk(s, pool, num_groups) for s in sequences[num_single:]]
    start = 0
    for rows in batches:
        rows.start, rows.end = start, start + rows.end
        start = rows.end
    return batches


def _gather_single(sequences: Sequence[SequenceRows], pool: Pool) -> GatheredRows:
    """Sequences with one row each, padded to the longest."""
    num_slots = torch.tensor([s.num_slots for s in sequences])
    max_slots = int(num_slots.max())
    mask = None
    if int(num_slots.min()) < max_slots:
        is_hidden = torch.arange(max_slots) >= num_slots[:, None]
        mask = _additive(is_hidden, pool)[:, None, None]
    blocks = _blocks(sequences, pool)
    return GatheredRows(0, len(sequences), len(sequences), blocks, max_slots, mask)


def _gather_chunk(sequence: SequenceRows, pool: Pool, num_groups: int) -> GatheredRows:
    """Several rows of one sequence: row i sees the slots up to its own."""
    last_visible = torch.arange(sequence.num_context, sequence.num_slots)
    is_hidden = torch.arange(sequence.num_slots) > last_visible[:, None]
    mask = _additive(is_hidden, pool).repeat(num_groups, 1)[None, None]
    blocks = _blocks([sequence], pool)
    return GatheredRows(0, sequence.num_rows, 1, blocks, sequence.num_slots, mask)


def _blocks(sequences: Sequence[SequenceRows], pool: Pool) -> torch.Tensor | int:
    if len(sequences) == 1:
        table = _used_blocks(sequences[0], pool)
        if all(after - before == 1 for before, after in pairwise(table)):
            return table[0] * pool.block_size
    return _padded_tables(sequences, pool).flatten().to(pool.device)


def _additive(is_hidden: torch.Tensor, pool: Pool) -> torch.Tensor:
    mask = torch.zeros(is_hidden.shape, dtype=pool.dtype)
    return mask.masked_fill_(is_hidden, float("-inf")).to(pool.device)


def _padded_tables(sequences: Sequence[SequenceRows], pool: Pool) -> torch.Tensor:
    """[num_sequences, max_blocks]; what is padded with block 0 is masked."""
    tables = [_used_blocks(s, pool) for s in sequences]
    max_blocks = max(map(len, tables))
    return torch.tensor([[*table, *([0] * (max_blocks - len(table)))] for table in tables])


def _used_blocks(sequence: SequenceRows, pool: Pool) -> Sequence[int]:
    return sequence.block_table[: -(-sequence.num_slots // pool.block_size)]
