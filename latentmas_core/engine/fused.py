"""A transformers decoder computed in fewer calls, out of the model's own weights.

q, k, v become one linear layer, gate and up another; weights are packed for the CPU; what depends
on the step alone is computed once per step. Only decoders whose structure is known exactly are
fused (Llama, Qwen2, Qwen3); others run as transformers wrote them, through the registered attention
function, which is also the oracle of this module.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from latentmas_core.engine.attention import AttentionBatch, paged_attention
from latentmas_core.engine.linear import Linear, MakeLinear
from latentmas_core.engine.shards import Shard
from latentmas_core.lora.batch import LoRABatch
from latentmas_core.lora.layers import LoRALinear, wrap_linears
from latentmas_core.lora.terms import Site

_NORMS = {"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
_DECODER_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
_NORM_PARTS = ("input_layernorm", "post_attention_layernorm")
_LAYER_PARTS = {"self_attn", "mlp", *_NORM_PARTS}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORM_PARTS = {"q_norm", "k_norm"}
# What is computed in one product, and so the sites where an adapter adds its terms.
FUSED_SITES: tuple[Site, ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_QKV, _OUT, _GATE_UP, _DOWN = range(len(FUSED_SITES))
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Rotation(NamedTuple):
    """The rotary tables of one step's rows, [num_rows, 1, head_dim] each.

    x cos + rotate_half(x) sin, where rotate_half(x) = (-x2, x1) is x with its halves swapped and
    the first negated: ``signed_sin`` holds that sign.
    """

    cos: torch.Tensor
    signed_sin: torch.Tensor

    @classmethod
    def from_tables(cls, cos: torch.Tensor, sin: torch.Tensor) -> "Rotation":
        """From transformers' tables, [1, num_rows, head_dim] each."""
        half = cos.shape[-1] // 2
        signed_sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cls(cos[0][:, None], signed_sin[0][:, None])

    def apply(self, heads: torch.Tensor) -> torch.Tensor:
        """heads: [num_rows, num_heads, head_dim]."""
        halves = heads.view(*heads.shape[:2], 2, -1)
        swapped = halves.flip(-2).view(heads.shape)
        return torch.addcmul(heads * self.cos, swapped, self.signed_sin)

    def to(self, device: torch.device) -> "Rotation":
        return Rotation(self.cos.to(device), self.signed_sin.to(device))


class FusedNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    On a CPU by way of ``layer_norm``, which torch computes in one pass there and ``rms_norm`` is
    not: the mean of (x, -x) is 0 and its variance is mean(x^2), so the first half of its layer norm
    is the RMS norm of x.
    """

    def __init__(self, norm: Any) -> None:
        self.weight: torch.Tensor = norm.weight.detach()
        self.eps: float = norm.variance_epsilon
        self.size: int = self.weight.numel()
        self.twice: torch.Tensor | None = None
        if self.weight.device.type == "cpu":
            self.twice = torch.cat((self.weight, self.weight))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.twice is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        both = torch.cat((x, -x), dim=-1)
        normed = torch.native_layer_norm(both, self.twice.shape, self.twice, None, self.eps)[0]
        first: torch.Tensor = normed[..., : self.size]
        return first


class FusedMLP:
    """y = down(act(gate(x)) * up(x)) with gate and up in one product."""

    def __init__(self, mlp: Any, layer_idx: int, make_linear: MakeLinear) -> None:
        self.layer_idx = layer_idx
        self.gate_up = _join([mlp.gate_proj, mlp.up_proj], make_linear)
        self.down = _join([mlp.down_proj], make_linear)
        self.act_fn = mlp.act_fn

    def __call__(self, x: torch.Tensor, lora: LoRABatch | None = None) -> torch.Tensor:
        gate_up = self.gate_up(x)
        if lora is not None:
            lora.add(self.layer_idx, _GATE_UP, x, gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        inner = self.act_fn(gate).mul_(up)
        y = self.down(inner)
        if lora is not None:
            lora.add(self.layer_idx, _DOWN, inner, y)
        return y


class FusedAttention:
    """Self-attention with q, k, v in one product and one rotation for queries and keys."""

    def __init__(self, attention: Any, make_linear: MakeLinear) -> None:
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = _join(projections, make_linear)
        self.out = _join([attention.o_proj], make_linear)
        self.layer_idx: int = attention.layer_idx
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.q_norm = FusedNorm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.k_norm = FusedNorm(attention.k_norm) if hasattr(attention, "k_norm") else None

    def __call__(
        self,
        hidden: torch.Tensor,
        rotation: Rotation,
        batch: AttentionBatch,
        lora: LoRABatch | None = None,
    ) -> torch.Tensor:
        """hidden: [num_rows, hidden_size]; returns the same shape."""
        num_rotated = self.num_heads + self.num_kv_heads
        qkv = self.qkv(hidden)
        if lora is not None:
            lora.add(self.layer_idx, _QKV, hidden, qkv)
        heads = qkv.view(hidden.shape[0], -1, self.head_dim)
        rotated = rotation.apply(self._normed(heads[:, :num_rotated]))
        output = paged_attention(
            batch,
            self.layer_idx,
            rotated[:, : self.num_heads],
            rotated[:, self.num_heads :],
            heads[:, num_rotated:],
            scaling=self.scaling,
        )
        joined = output.reshape(hidden.shape[0], -1)
        projected = self.out(joined)
        if lora is not None:
            lora.add(self.layer_idx, _OUT, joined, projected)
        return projected

    def _normed(self, heads: torch.Tensor) -> torch.Tensor:
        if self.q_norm is None or self.k_norm is None:
            return heads
        query, key = heads[:, : self.num_heads], heads[:, self.num_heads :]
        return torch.cat((self.q_norm(query), self.k_norm(key)), dim=1)


class FusedLayer:
    """A decoder layer: attention and MLP, each behind a norm and around a residual."""

    def __init__(self, layer: Any, make_linear: MakeLinear) -> None:
        self.attention_norm = FusedNorm(layer.input_layernorm)
        self.attention = FusedAttention(layer.self_attn, make_linear)
        self.mlp_norm = FusedNorm(layer.post_attention_layernorm)
        self.mlp = FusedMLP(layer.mlp, self.attention.layer_idx, make_linear)

    def __call__(
        self,
        hidden: torch.Tensor,
        rotation: Rotation,
        batch: AttentionBatch,
        lora: LoRABatch | None = None,
    ) -> torch.Tensor:
        """hidden: [num_rows, hidden_size]; returns the same shape."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotation, batch, lora)
        return hidden + self.mlp(self.mlp_norm(hidden), lora)


class LayerRun(NamedTuple):
    """Neighbouring layers on one device."""

    device: torch.device
    layers: list[FusedLayer]


class FusedDecoder:
    """All layers and the final norm. Takes the layers of ``decoder`` away from it, one by one.

    Over several shards what a step needs is handed over from device to device, once per step.
    """

    def __init__(self, decoder: Any, make_linear: MakeLinear, shards: Sequence[Shard] = ()) -> None:
        self.rotary_emb = decoder.rotary_emb
        self.runs: list[LayerRun] = []
        for shard in shards or [_whole(decoder)]:
            run = LayerRun(shard.device, [])
            for index in range(shard.start, shard.end):
                run.layers.append(FusedLayer(decoder.layers[index], make_linear))
                decoder.layers[index] = nn.Identity()  # so that its weights are not kept twice
            self.runs.append(run)
        self.norm = FusedNorm(decoder.norm)
        self.sites = FUSED_SITES

    def __call__(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        batch: AttentionBatch,
        lora: LoRABatch | None = None,
    ) -> torch.Tensor:
        """embeddings [num_rows, hidden_size], positions [num_rows] -> hidden after the norm.

        Both are on the first device, what is returned is on the last.
        """
        rotation = Rotation.from_tables(*self.rotary_emb(embeddings, positions[None]))
        hidden = embeddings
        for number, (device, layers) in enumerate(self.runs):
            if number > 0:
                hidden, rotation, batch = hidden.to(device), rotation.to(device), batch.to(device)
            for layer in layers:
                hidden = layer(hidden, rotation, batch, lora)
        normed: torch.Tensor = self.norm(hidden)
        return normed


class PlainDecoder:
    """The same face over transformers' own decoder: for structures that cannot be fused."""

    def __init__(self, decoder: Any, sites: Sequence[Site] = ()) -> None:
        self.decoder = decoder
        self.sites = sites
        self._linears = wrap_linears(decoder.layers, sites)

    def __call__(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        batch: AttentionBatch,
        lora: LoRABatch | None = None,
    ) -> torch.Tensor:
        with _adapted(self._linears, lora):
            output = self.decoder(
                inputs_embeds=embeddings[None],
                position_ids=positions[None],
                use_cache=False,
                batch=batch,
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


@contextmanager
def _adapted(linears: Sequence[LoRALinear], lora: LoRABatch | None) -> Iterator[None]:
    """The adapters of one step; whatever happens in it, the next starts without them."""
    if lora is None:
        yield
        return
    try:
        for linear in linears:
            linear.lora = lora
        yield
    finally:
        for linear in linears:
            linear.lora = None


def _whole(decoder: Any) -> Shard:
    return Shard(decoder.norm.weight.device, 0, len(decoder.layers))


def make_decoder(
    decoder: nn.Module,
    make_linear: MakeLinear,
    targets: Iterable[str] = (),
    shards: Sequence[Shard] = (),
) -> FusedDecoder | PlainDecoder:
    """The fused decoder where the structure is known exactly, else transformers' own.

    targets: the linear layers that adapters may change; the fused decoder knows its own. shards:
    where the layers lie, if not all on one device; the layers of transformers' own know theirs.
    """
    if can_fuse(decoder):
        return FusedDecoder(decoder, make_linear, shards)
    return PlainDecoder(decoder, [(target,) for target in targets])


def can_fuse(decoder: Any) -> bool:
    """Whether ``FusedDecoder`` computes exactly what this decoder does."""
    return has_known_structure(decoder) and all(
        _are_plain(layer.self_attn, layer.mlp) for layer in decoder.layers
    )


def has_known_structure(decoder: nn.Module) -> bool:
    """Whether it is put together as those whose parity is proved, of whatever linear layers."""
    parts = dict(decoder.named_children())
    if parts.keys() != _DECODER_PARTS or type(parts["norm"]).__name__ not in _NORMS:
        return False
    return all(_is_known(layer) for layer in parts["layers"].children())


def _is_known(layer: nn.Module) -> bool:
    parts = dict(layer.named_children())
    if parts.keys() != _LAYER_PARTS:
        return False
    if any(type(parts[name]).__name__ not in _NORMS for name in _NORM_PARTS):
        return False
    attention = dict(parts["self_attn"].named_children()).keys()
    if attention not in (_ATTENTION_PARTS, _ATTENTION_PARTS | _HEAD_NORM_PARTS):
        return False
    return dict(parts["mlp"].named_children()).keys() == _MLP_PARTS


def _are_plain(attention: nn.Module, mlp: nn.Module) -> bool:
    """Whether all projections are plain linear layers: quantised ones cannot be joined."""
    linears = [getattr(attention, name) for name in _ATTENTION_PARTS]
    linears += [getattr(mlp, name) for name in _MLP_PARTS - {"act_fn"}]
    return all(type(linear) is nn.Linear for linear in linears)


def _join(linears: list[Any], make_linear: MakeLinear) -> Linear:
    """One linear layer with the outputs of all, in order."""
    weight = torch.cat([linear.weight for linear in linears])
    if all(linear.bias is None for linear in linears):
        return make_linear(weight, None)
    biases = [_bias_of(linear) for linear in linears]
    return make_linear(weight, torch.cat(biases))


def _bias_of(linear: Any) -> torch.Tensor:
    bias: torch.Tensor | None = linear.bias
    weight: torch.Tensor = linear.weight
    return weight.new_zeros(linear.out_features) if bias is None else bias
