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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from latentmas_core.engine.kv_pool import KVPool

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

    blocks: the ids of all blocks, sequence after sequence, or a slice where one sequence has
    neighbouring blocks: those are read without copying. mask: additive, broadcastable to
    [num_sequences, 1, num_heads_per_group * num_rows, max_slots], or None where all is visible.
    """

    start: int
    end: int
    num_sequences: int
    blocks: torch.Tensor | slice
    max_slots: int
    mask: torch.Tensor | None


@dataclass
class PagedRows:
    """Arguments of ``varlen_attn`` for the whole step; all tensors int32 on the device."""

    cu_seq_q: torch.Tensor  # [num_sequences + 1]
    seqused_k: torch.Tensor  # [num_sequences]
    block_table: torch.Tensor  # [num_sequences, max_blocks]
    max_q: int
    max_k: int


@dataclass
class AttentionBatch:
    """One step: where its rows are written, and how they read."""

    pool: KVPool
    slot_mapping: torch.Tensor  # [num_rows]
    gathered: list[GatheredRows]
    paged: PagedRows | None


def prepare_batch(
    sequences: Sequence[SequenceRows], pool: KVPool, *, num_groups: int, is_paged: bool
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
    keys, values = batch.pool.keys[layer_idx], batch.pool.values[layer_idx]
    keys.view(-1, *keys.shape[2:]).index_copy_(0, batch.slot_mapping, key)
    values.view(-1, *values.shape[2:]).index_copy_(0, batch.slot_mapping, value)
    if batch.paged is not None:
        return _attend_paged(batch.paged, query, keys, values, scaling)
    outputs = [_attend_gathered(rows, query, keys, values, scaling) for rows in batch.gathered]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
    rows: GatheredRows,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The query heads that share a key head become extra query rows: no key is repeated."""
    num_kv_heads, head_dim = keys.shape[2:]
    num_seqs, num_queries = rows.num_sequences, (rows.end - rows.start) // rows.num_sequences
    size = (num_seqs, -1, num_kv_heads, head_dim)
    gathered_keys, gathered_values = (
        _blocks_of(pages, rows.blocks).view(size)[:, : rows.max_slots] for pages in (keys, values)
    )
    # [num_seqs, num_queries, H_kv, G, D] -> [num_seqs, H_kv, G * num_queries, D]
    grouped = query[rows.start : rows.end].reshape(
        num_seqs, num_queries, num_kv_heads, -1, head_dim
    )
    num_groups = grouped.shape[3]
    grouped = grouped.permute(0, 2, 3, 1, 4).reshape(num_seqs, num_kv_heads, -1, head_dim)
    output = F.scaled_dot_product_attention(
        grouped,
        gathered_keys.transpose(1, 2),
        gathered_values.transpose(1, 2),
        attn_mask=rows.mask,
        scale=scaling,
    )
    output = output.view(num_seqs, num_kv_heads, num_groups, num_queries, head_dim)
    return output.permute(0, 3, 1, 2, 4).reshape(rows.end - rows.start, -1, head_dim)


def _blocks_of(pages: torch.Tensor, blocks: torch.Tensor | slice) -> torch.Tensor:
    return pages[blocks] if isinstance(blocks, slice) else pages.index_select(0, blocks)


def _prepare_paged(sequences: Sequence[SequenceRows], pool: KVPool) -> PagedRows:
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
    sequences: Sequence[SequenceRows], pool: KVPool, num_groups: int
) -> list[GatheredRows]:
    num_single = sum(s.num_rows == 1 for s in sequences)
    batches = [_gather_single(sequences[:num_single], pool)] if num_single else []
    batches += [_gather_chunk(s, pool, num_groups) for s in sequences[num_single:]]
    start = 0
    for rows in batches:
        rows.start, rows.end = start, start + rows.end
        start = rows.end
    return batches


def _gather_single(sequences: Sequence[SequenceRows], pool: KVPool) -> GatheredRows:
    """Sequences with one row each, padded to the longest."""
    num_slots = torch.tensor([s.num_slots for s in sequences])
    max_slots = int(num_slots.max())
    mask = None
    if int(num_slots.min()) < max_slots:
        is_hidden = torch.arange(max_slots) >= num_slots[:, None]
        mask = _additive(is_hidden, pool)[:, None, None]
    blocks = _blocks(sequences, pool)
    return GatheredRows(0, len(sequences), len(sequences), blocks, max_slots, mask)


def _gather_chunk(sequence: SequenceRows, pool: KVPool, num_groups: int) -> GatheredRows:
    """Several rows of one sequence: row i sees the slots up to its own."""
    last_visible = torch.arange(sequence.num_context, sequence.num_slots)
    is_hidden = torch.arange(sequence.num_slots) > last_visible[:, None]
    mask = _additive(is_hidden, pool).repeat(num_groups, 1)[None, None]
    blocks = _blocks([sequence], pool)
    return GatheredRows(0, sequence.num_rows, 1, blocks, sequence.num_slots, mask)


def _blocks(sequences: Sequence[SequenceRows], pool: KVPool) -> torch.Tensor | slice:
    tables = _padded_tables(sequences, pool)
    first, last = int(tables[0, 0]), int(tables[0, -1])
    is_run = len(sequences) == 1 and bool((tables[0].diff() == 1).all())
    return slice(first, last + 1) if is_run else tables.flatten().to(pool.device)


def _additive(is_hidden: torch.Tensor, pool: KVPool) -> torch.Tensor:
    mask = torch.zeros(is_hidden.shape, dtype=pool.keys.dtype)
    return mask.masked_fill_(is_hidden, float("-inf")).to(pool.device)


def _padded_tables(sequences: Sequence[SequenceRows], pool: KVPool) -> torch.Tensor:
    tables = [torch.tensor(s.block_table[: -(-s.num_slots // pool.block_size)]) for s in sequences]
    return nn.utils.rnn.pad_sequence(tables, batch_first=True)
