"""The LatentMAS algorithm for one request at a time, on transformers with a DynamicCache.

Knows nothing of batches, blocks, adapters or tokenizers. Formulas: LatentMAS, arXiv 2511.20639.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


@dataclass
class PlainMemory:
    """Keys and values of all layers for the rows that agents left behind.

    Merged memories reuse positions, so next_position may be smaller than the number of rows.
    """

    keys: list[Tensor]  # per layer [num_kv_heads, num_rows, head_dim], already rotated
    values: list[Tensor]  # per layer [num_kv_heads, num_rows, head_dim]
    next_position: int

    @property
    def num_rows(self) -> int:
        return self.keys[0].shape[1]


class PlainThought(NamedTuple):
    """The memory behind the last latent step, and the steps."""

    memory: PlainMemory
    latents: Tensor  # [num_steps, hidden_size], the input embeddings that were fed


class PlainLatentMAS:
    """Agents that think in latent steps, hand on their memory, and speak greedily.

    The model keeps its own attention (sdpa by default). Its mask follows the rows in the cache and
    never the positions, so memories that reuse positions need no mask of their own.
    """

    def __init__(
        self, model: PreTrainedModel, *, realign: bool = True, ridge: float = 1e-5
    ) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._lm_head = model.get_output_embeddings()
        weight = self._embedding.weight  # [vocab_size, hidden_size]
        self.mean_norm = weight.detach().float().norm(dim=-1).mean()
        is_tied = weight.data_ptr() == self._lm_head.weight.data_ptr()
        self.realignment: Tensor | None = None  # None stands for the identity
        if realign and not is_tied:
            self.realignment = solve_realignment(weight, self._lm_head.weight, ridge=ridge)

    @torch.inference_mode()
    def think(
        self, prompt_ids: list[int], memory: PlainMemory | None, *, latent_steps: int
    ) -> PlainThought:
        """Memory plus the rows of the prompt and of the latent steps; the given one stays as is."""
        rows = self._prefill(prompt_ids, memory)
        latents = self._feed_latents(rows, latent_steps)
        return PlainThought(rows.to_memory(), latents)

    @torch.inference_mode()
    def speak(
        self,
        prompt_ids: list[int],
        memory: PlainMemory | None,
        *,
        max_tokens: int,
        eos_token_ids: frozenset[int] = frozenset(),
        latent_steps: int = 0,
    ) -> list[int]:
        """Greedy answer, without its end token; exactly max_tokens ids if no id ends it."""
        rows = self._prefill(prompt_ids, memory)
        self._feed_latents(rows, latent_steps)
        answer_ids: list[int] = []
        while len(answer_ids) < max_tokens:
            if answer_ids:
                rows.append(self._embed(answer_ids[-1:]))
            token_id = int(self._lm_head(rows.hidden).argmax())
            if token_id in eos_token_ids:
                break
            answer_ids.append(token_id)
        return answer_ids

    @torch.inference_mode()
    def logits(self, prompt_ids: list[int], memory: PlainMemory | None) -> Tensor:
        """Scores of the token after the prompt, [vocab_size] in fp32."""
        rows = self._prefill(prompt_ids, memory)
        return self._lm_head(rows.hidden)[0].float()

    def run_latent(
        self,
        prompts: list[list[int]],
        *,
        latent_steps: int,
        max_tokens: int,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> list[int]:
        """A chain: all agents but the last think, each behind the ones before; the last speaks."""
        memory: PlainMemory | None = None
        for prompt_ids in prompts[:-1]:
            memory = self.think(prompt_ids, memory, latent_steps=latent_steps).memory
        return self.speak(prompts[-1], memory, max_tokens=max_tokens, eos_token_ids=eos_token_ids)

    def run_experts(
        self,
        prompts: list[list[int]],
        *,
        latent_steps: int,
        max_tokens: int,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> list[int]:
        """All agents but the last think alone; the last speaks over their merged memories."""
        thoughts = [self.think(ids, None, latent_steps=latent_steps) for ids in prompts[:-1]]
        memory = merge_reused([thought.memory for thought in thoughts])
        return self.speak(prompts[-1], memory, max_tokens=max_tokens, eos_token_ids=eos_token_ids)

    def align(self, hidden: Tensor) -> Tensor:
        """The next input embedding: e = x mean_norm / |x| with x = h W, both [1, hidden_size]."""
        latent = hidden.float()
        if self.realignment is not None:
            latent = latent @ self.realignment
        latent = latent * (self.mean_norm / latent.norm(dim=-1, keepdim=True))
        return latent.to(hidden.dtype)

    def _prefill(self, prompt_ids: list[int], memory: PlainMemory | None) -> "_Rows":
        rows = _Rows(self._model, memory)
        rows.append(self._embed(prompt_ids))
        return rows

    def _feed_latents(self, rows: "_Rows", num_steps: int) -> Tensor:
        """Feed back the aligned hidden state num_steps times; what was fed."""
        latents = [rows.hidden[:0]]
        for _ in range(num_steps):
            latents.append(self.align(rows.hidden))
            rows.append(latents[-1])
        return torch.cat(latents)  # [num_steps, hidden_size]

    def _embed(self, token_ids: Sequence[int]) -> Tensor:
        ids = torch.tensor(token_ids, device=self._embedding.weight.device)
        return self._embedding(ids)  # [num_rows, hidden_size]


class _Rows:
    """The growing cache of one request, its last hidden state, and where its next row stands."""

    hidden: Tensor  # [1, hidden_size], after the final norm

    def __init__(self, model: PreTrainedModel, memory: PlainMemory | None) -> None:
        self._decoder = model.model  # without lm_head
        self._next_position = memory.next_position if memory else 0
        keys, values = (memory.keys, memory.values) if memory else ([], [])
        pairs = [(k[None], v[None]) for k, v in zip(keys, values, strict=True)]
        self._cache = DynamicCache(pairs, config=model.config)  # copies what it is given

    def append(self, embeddings: Tensor) -> None:
        """Run rows given as input embeddings, [num_rows, hidden_size]."""
        end = self._next_position + len(embeddings)
        positions = torch.arange(self._next_position, end, device=embeddings.device)
        output = self._decoder(
            inputs_embeds=embeddings[None],
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._next_position = end
        self.hidden = output.last_hidden_state[0, -1:]

    def to_memory(self) -> PlainMemory:
        keys = [layer.keys[0] for layer in self._cache.layers]
        values = [layer.values[0] for layer in self._cache.layers]
        return PlainMemory(keys, values, self._next_position)


@torch.inference_mode()
def solve_realignment(embedding: Tensor, lm_head: Tensor, *, ridge: float) -> Tensor:
    """W = (Wout^T Wout + ridge I)^-1 Wout^T Win, [hidden_size, hidden_size] in fp32.

    Both weights are [vocab_size, hidden_size]. Source: LatentMAS, arXiv 2511.20639.
    """
    w_in, w_out = embedding.float(), lm_head.float()
    gram = w_out.T @ w_out
    gram.diagonal().add_(ridge)
    return torch.linalg.solve(gram, w_out.T @ w_in)


@torch.inference_mode()
def merge_reused(memories: list[PlainMemory]) -> PlainMemory:
    """Rows side by side at the positions they have; what follows starts after the longest."""
    return PlainMemory(
        _join([memory.keys for memory in memories]),
        _join([memory.values for memory in memories]),
        max(memory.next_position for memory in memories),
    )


@torch.inference_mode()
def merge_consecutive(memories: list[PlainMemory], rotary: nn.Module) -> PlainMemory:
    """Rows one after the other; each memory must start at position 0 and see only itself.

    rotary is the model's rotary embedding, model.model.rotary_emb.
    """
    keys: list[list[Tensor]] = []
    offset = 0
    for memory in memories:
        keys.append([_rotate(layer, offset, rotary.inv_freq) for layer in memory.keys])
        offset += memory.next_position
    return PlainMemory(_join(keys), _join([memory.values for memory in memories]), offset)


def _rotate(keys: Tensor, distance: int, inv_freq: Tensor) -> Tensor:
    """K(p + d) = K(p) cos(d theta) + rotate_half(K(p)) sin(d theta), of unit magnitude, in fp32.

    From R(p + d) = R(d) R(p): RoFormer, arXiv 2104.09864, in the half-split layout of Llama.
    """
    angles = (distance * inv_freq.float()).repeat(2)  # [head_dim]
    first, second = keys.float().chunk(2, dim=-1)
    rotated = keys.float() * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()
    return rotated.to(keys.dtype)


def _join(parts: list[list[Tensor]]) -> list[Tensor]:
    """Per layer, the rows of all parts: [num_kv_heads, num_rows, head_dim] each."""
    return [torch.cat(layers, dim=1) for layers in zip(*parts, strict=True)]
