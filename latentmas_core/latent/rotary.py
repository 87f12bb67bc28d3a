"""Moves keys that are already rotated to other positions. Exact: rotations compose.

With R(p) the rotary rotation at position p, K'(p + d) = R(d) K(p); values are untouched (RoFormer,
Su et al. 2021, eq. 34). The tables have unit magnitude: a scaling of cos and sin by the model, as
in YaRN, is in the keys already and must not be applied twice.
"""

import torch


def rotate_keys(keys: torch.Tensor, shift: int, inv_freq: torch.Tensor) -> torch.Tensor:
    """Keys [..., head_dim] moved by ``shift`` positions; computed in fp32, rounded once.

    inv_freq: [rotary_dim / 2], the model's inverse frequencies; dimensions of the head beyond
    rotary_dim are not rotated.
    """
    if shift == 0:
        return keys
    angles = shift * inv_freq.to(keys.device, torch.float64)
    cos, sin = angles.cos().float(), angles.sin().float()  # [rotary_dim / 2]
    half = inv_freq.numel()
    wide = keys.float()
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    rotated = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(rotated, dim=-1).to(keys.dtype)
