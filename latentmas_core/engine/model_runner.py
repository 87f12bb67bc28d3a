"""The only forward pass: rows of many sequences, thinking and speaking, in one flat batch.

A row is always an embedding: of a prompt token, of a sampled token, or of a latent thought. Logits
are computed only for rows that are sampled, and for thoughts that are looked at. Knows no
scheduling; it is told what to compute.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from latentmas_core.engine.attention import (
    ATTENTION_NAME,
    SequenceRows,
    can_read_pages,
    prepare_batch,
)
from latentmas_core.engine.fused import has_known_structure, make_decoder
from latentmas_core.engine.kv_pool import Pool
from latentmas_core.engine.lens import read_lens
from latentmas_core.engine.linear import make_linear
from latentmas_core.engine.model_loader import LoadedModel
from latentmas_core.engine.sampler import choose_tokens, logprobs_of
from latentmas_core.engine.scheduler import ScheduledRows
from latentmas_core.engine.self_check import reference_hidden, refuse_if_different
from latentmas_core.engine.sequence import NextRow
from latentmas_core.engine.sequence import Sequence as EngineSequence
from latentmas_core.engine.shards import devices_of
from latentmas_core.latent.realignment import realignment_of
from latentmas_core.lora.base_model import describe_base
from latentmas_core.lora.batch import LoRABatch, Segment


class ModelRunner:
    """Computes scheduled rows and appends to each sequence the row that follows from them.

    ``device`` is where embeddings and latents live: the first, if the layers lie on several.
    """

    def __init__(self, loaded: LoadedModel, *, is_realigned: bool, has_lora: bool = False) -> None:
        model: Any = loaded.model
        self.shape = loaded.shape
        self.shards = loaded.shards
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.realign = realignment_of(model, is_on=is_realigned)
        devices = devices_of(self.shards)
        self.is_paged = all(can_read_pages(device, self.dtype) for device in devices)
        self.inv_freq: torch.Tensor = model.model.rotary_emb.inv_freq
        self._embed_tokens: nn.Module = model.get_input_embeddings()
        head = model.get_output_embeddings()
        self._lm_head = make_linear(head.weight, head.bias)
        self._head_device: torch.device = head.weight.device
        expected = None if has_known_structure(model.model) else reference_hidden(loaded)
        model.set_attn_implementation(ATTENTION_NAME)
        self.base = describe_base(loaded.name, model.model.layers)
        targets = self.base.targets if has_lora else ()
        self._decoder = make_decoder(model.model, make_linear, targets, self.shards)
        self.sites = self._decoder.sites
        if expected is not None:
            refuse_if_different(loaded, self._decoder, self._embed_tokens, expected)

    @torch.inference_mode()
    def step(self, scheduled: Sequence[ScheduledRows], pool: Pool) -> list[EngineSequence]:
        """Compute the rows, write their keys and values, append latents and sampled tokens.

        Returns the sequences whose numbers overflowed with their adapters: what was appended to
        them means nothing.
        """
        lora = _lora_batch(scheduled)
        hidden = self._forward(scheduled, pool, lora)  # [num_rows, hidden_size]
        ends = torch.tensor([rows.num_rows for rows in scheduled]).cumsum(0) - 1
        thinking, speaking = [], []
        for (sequence, num_rows), end in zip(scheduled, ends.tolist(), strict=True):
            if num_rows < sequence.num_uncomputed:
                continue  # a chunk of a prompt: its last row is not the last that is known
            if sequence.next_row is NextRow.LATENT:
                thinking.append((sequence, end))
            elif sequence.next_row is NextRow.TOKEN:
                speaking.append((sequence, end))
        if thinking:
            latents = self.realign(_select(hidden, [end for _, end in thinking], self.device))
            for (sequence, _), latent in zip(thinking, latents, strict=True):
                sequence.latents.append(latent)
            self._look_at_thoughts(hidden, thinking)
        if speaking:
            ends_spoken = [end for _, end in speaking]
            logits = self._lm_head(_select(hidden, ends_spoken, self._head_device))
            choosers = [sequence.chooser for sequence, _ in speaking]
            tokens = choose_tokens(logits, choosers)
            for (sequence, _), token in zip(speaking, tokens, strict=True):
                sequence.output_ids.append(token)
            _note_logprobs(logits, tokens, [sequence for sequence, _ in speaking])
        return [] if lora is None else _overflown(hidden, scheduled)

    def _look_at_thoughts(
        self, hidden: torch.Tensor, thinking: Sequence[tuple[EngineSequence, int]]
    ) -> None:
        """The lens, for the rows of those who ask for it.

        Not in one product with the rows that are sampled: its number of rows would change their
        last bits.
        """
        watched = [(sequence, end) for sequence, end in thinking if sequence.turn.has_lens]
        if not watched:
            return
        rows = _select(hidden, [end for _, end in watched], self._head_device)
        readings = read_lens(rows, self._lm_head(rows))
        for (sequence, _), reading in zip(watched, readings, strict=True):
            sequence.readings.append(reading)

    def _forward(
        self, scheduled: Sequence[ScheduledRows], pool: Pool, lora: LoRABatch | None
    ) -> torch.Tensor:
        batch = prepare_batch(
            [SequenceRows(s.block_table, s.num_slots, n) for s, n in scheduled],
            pool,
            num_groups=self.shape.num_heads // self.shape.num_kv_heads,
            is_paged=self.is_paged,
        )
        batch.is_guarded = lora is not None
        hidden: torch.Tensor = self._decoder(
            self._embed(scheduled), self._positions(scheduled), batch, lora
        )
        return hidden

    def _embed(self, scheduled: Sequence[ScheduledRows]) -> torch.Tensor:
        """The inputs of the scheduled rows [num_rows, hidden_size]."""
        token_ids: list[int] = []
        latent_rows: list[int] = []
        latents: list[torch.Tensor] = []
        for sequence, num_rows in scheduled:
            inputs = sequence.inputs(sequence.num_computed, sequence.num_computed + num_rows)
            latent_rows += range(
                len(token_ids) + len(inputs.before),
                len(token_ids) + len(inputs.before) + len(inputs.latents),
            )
            latents += inputs.latents
            # Token 0 keeps the place of a latent and is overwritten below.
            token_ids += [*inputs.before, *([0] * len(inputs.latents)), *inputs.after]
        embeddings: torch.Tensor = self._embed_tokens(torch.tensor(token_ids, device=self.device))
        if latents:
            rows = torch.tensor(latent_rows, device=self.device)
            embeddings[rows] = torch.stack(latents).to(embeddings)
        return embeddings

    def _positions(self, scheduled: Sequence[ScheduledRows]) -> torch.Tensor:
        starts = [(s.first_position + s.num_computed, n) for s, n in scheduled]
        positions = torch.cat([torch.arange(start, start + n) for start, n in starts])
        return positions.to(self.device)


def _note_logprobs(
    logits: torch.Tensor, tokens: list[int], speaking: Sequence[EngineSequence]
) -> None:
    """For those that ask; nothing is computed for all others."""
    asking = [
        (row, sequence, sequence.num_top_logprobs)
        for row, sequence in enumerate(speaking)
        if sequence.num_top_logprobs is not None
    ]
    if not asking:
        return
    rows = [row for row, _, _ in asking]
    noted = logprobs_of(
        _select(logits, rows, logits.device),
        [tokens[row] for row in rows],
        [num_top for _, _, num_top in asking],
    )
    for (_, sequence, _), logprobs in zip(asking, noted, strict=True):
        sequence.logprobs.append(logprobs)


def _select(hidden: torch.Tensor, rows: list[int], device: torch.device) -> torch.Tensor:
    return hidden[torch.tensor(rows, device=hidden.device)].to(device)


def _overflown(hidden: torch.Tensor, scheduled: Sequence[ScheduledRows]) -> list[EngineSequence]:
    is_finite = torch.isfinite(hidden).all(dim=-1)  # [num_rows]
    if bool(is_finite.all()):
        return []
    by_sequence = torch.split(is_finite.cpu(), [rows.num_rows for rows in scheduled])
    return [
        rows.sequence
        for rows, is_finite in zip(scheduled, by_sequence, strict=True)
        if not bool(is_finite.all())
    ]


def _lora_batch(scheduled: Sequence[ScheduledRows]) -> LoRABatch | None:
    """The adapters of the step: neighbours that run with the same ones are one segment."""
    segments: list[Segment] = []
    start = 0
    for _, rows in groupby(scheduled, key=lambda rows: rows.sequence.mix_key):
        together = list(rows)
        num_rows = sum(rows.num_rows for rows in together)
        sequence = together[0].sequence
        segments += [
            Segment(start, num_rows, berth.terms, use.weight)
            for use, berth in zip(sequence.mix.uses, sequence.berths, strict=True)
        ]
        start += num_rows
    return LoRABatch(segments) if segments else None
