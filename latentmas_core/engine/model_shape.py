"""The sizes of a model. Imports neither torch nor transformers, which take seconds to import."""

from typing import NamedTuple


class ModelShape(NamedTuple):
    """The sizes that blocks, segments and prompts are measured with."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int
