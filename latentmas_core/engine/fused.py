"""Replaces the small modules of a transformers decoder by ones that do the same in fewer calls.

q, k, v become one linear layer, gate and up another; norms call the fused ``rms_norm``; weights are
packed for the CPU. transformers' own model and layers still run the step. Only modules whose
structure is known exactly are replaced (Llama, Qwen2, Qwen3 and whatever is built like them); the
rest stays as it is and is served through the registered attention function.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latentmas_core.engine.attention import AttentionBatch, paged_attention
from latentmas_core.engine.packed_linear import make_linear

_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class FusedNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: torch.Tensor = norm.weight.detach()
        self.eps: float = norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FusedMLP(nn.Module):
    """y = down(act(gate(x)) * up(x)) with gate and up in one product."""

    def __init__(self, mlp: Any, *, is_packed: bool) -> None:
        super().__init__()
        self.gate_up = _join([mlp.gate_proj, mlp.up_proj], is_packed=is_packed)
        self.down = _join([mlp.down_proj], is_packed=is_packed)
        self.act_fn = mlp.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: torch.Tensor = self.down(self.act_fn(gate) * up)
        return y


class FusedAttention(nn.Module):
    """Self-attention with q, k, v in one product and one rotation for queries and keys."""

    def __init__(self, attention: Any, *, is_packed: bool) -> None:
        super().__init__()
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = _join(projections, is_packed=is_packed)
        self.out = _join([attention.o_proj], is_packed=is_packed)
        self.layer_idx: int = attention.layer_idx
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.q_norm = FusedNorm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.k_norm = FusedNorm(attention.k_norm) if hasattr(attention, "k_norm") else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        *,
        batch: AttentionBatch,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states: [1, num_rows, hidden_size]; returns the same shape."""
        num_rows = hidden_states.shape[1]
        num_rotated = self.num_heads + self.num_kv_heads
        heads = self.qkv(hidden_states).view(num_rows, -1, self.head_dim)
        rotated = _rotate(self._normed(heads[:, :num_rotated]), position_embeddings, batch)
        output = paged_attention(
            batch,
            self.layer_idx,
            rotated[:, : self.num_heads],
            rotated[:, self.num_heads :],
            heads[:, num_rotated:],
            scaling=self.scaling,
        )
        return self.out(output.reshape(1, num_rows, -1)), None

    def _normed(self, heads: torch.Tensor) -> torch.Tensor:
        if self.q_norm is None or self.k_norm is None:
            return heads
        query, key = heads[:, : self.num_heads], heads[:, self.num_heads :]
        return torch.cat((self.q_norm(query), self.k_norm(key)), dim=1)


def fuse_model(model: Any, *, is_packed: bool) -> int:
    """Replace in place what is known exactly; returns how many modules were replaced."""
    num_replaced = _fuse_children(model, is_packed=is_packed)
    head = model.get_output_embeddings()
    if is_packed and type(head) is nn.Linear:
        model.set_output_embeddings(make_linear(head.weight, head.bias, is_packed=True))
    return num_replaced


def _fuse_children(parent: nn.Module, *, is_packed: bool) -> int:
    num_replaced = 0
    for name, child in list(parent.named_children()):
        replacement = _replacement(child, is_packed=is_packed)
        if replacement is None:
            num_replaced += _fuse_children(child, is_packed=is_packed)
        else:
            setattr(parent, name, replacement)
            num_replaced += 1
    return num_replaced


def _replacement(module: nn.Module, *, is_packed: bool) -> nn.Module | None:
    parts = {name for name, _ in module.named_children()}
    if _is_rms_norm(module):
        return FusedNorm(module)
    if parts == _MLP_PARTS and _are_plain(module, _MLP_PARTS - {"act_fn"}):
        return FusedMLP(module, is_packed=is_packed)
    has_norms = parts == _ATTENTION_PARTS | {"q_norm", "k_norm"}
    if (parts == _ATTENTION_PARTS or has_norms) and _are_plain(module, _ATTENTION_PARTS):
        return FusedAttention(module, is_packed=is_packed)
    return None


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__ in {"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


def _are_plain(module: nn.Module, names: set[str]) -> bool:
    return all(type(getattr(module, name)) is nn.Linear for name in names)


def _join(linears: list[Any], *, is_packed: bool) -> nn.Module:
    """One linear layer with the outputs of all, in order."""
    weight = torch.cat([linear.weight for linear in linears])
    if all(linear.bias is None for linear in linears):
        return make_linear(weight, None, is_packed=is_packed)
    biases = [_bias_of(linear) for linear in linears]
    return make_linear(weight, torch.cat(biases).detach(), is_packed=is_packed)


def _bias_of(linear: Any) -> torch.Tensor:
    bias: torch.Tensor | None = linear.bias
    weight: torch.Tensor = linear.weight
    return weight.new_zeros(linear.out_features) if bias is None else bias


def _rotate(
    heads: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    batch: AttentionBatch,
) -> torch.Tensor:
    """x cos + rotate_half(x) sin, for heads [num_rows, num_heads, head_dim].

    rotate_half(x) = (-x2, x1) is x rolled by half with the first half negated; the sign goes into
    sin, once per step.
    """
    cos, sin = (table[0][:, None] for table in position_embeddings)  # [num_rows, 1, head_dim]
    half = heads.shape[-1] // 2
    if batch.signed_sin is None:
        batch.signed_sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return torch.addcmul(heads * cos, heads.roll(half, dims=-1), batch.signed_sin)
