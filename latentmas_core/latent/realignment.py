"""Turns a hidden state into the next input embedding: a latent thought.

Alignment (LatentMAS, arXiv 2511.20639): W = (Wout^T Wout + ridge I)^-1 Wout^T Win, in fp32, maps
the hidden state after the final norm into the space of input embeddings; the result is rescaled to
the mean norm of the embedding rows. With tied embeddings W is the identity, and the product is
skipped.
"""

from typing import Any

import torch

RIDGE = 1e-5
# Rows of the matrices that are taken at a time, so that large ones are never whole in fp32.
CHUNK_ROWS = 2**16


class Realignment:
    """e = rescale(h W); ``matrix`` is None where W is the identity or is switched off."""

    def __init__(self, matrix: torch.Tensor | None, target_norm: torch.Tensor) -> None:
        self.matrix = matrix  # [hidden_size, hidden_size], fp32
        self.target_norm = target_norm  # [], fp32

    @classmethod
    def from_embeddings(
        cls, input_weight: torch.Tensor, output_weight: torch.Tensor, *, is_on: bool = True
    ) -> "Realignment":
        """From the embedding and output matrices, [vocab_size, hidden_size] each.

        They may lie on two devices; the result is where the embeddings are.
        """
        norms = [rows.float().norm(dim=-1) for rows in torch.split(input_weight, CHUNK_ROWS)]
        target_norm = torch.cat(norms).mean()
        if not is_on or is_tied(input_weight, output_weight):
            return cls(None, target_norm)
        return cls(alignment_matrix(input_weight, output_weight), target_norm)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] -> input embeddings of the same shape and dtype."""
        aligned = hidden.float()
        if self.matrix is not None:
            aligned = aligned @ self.matrix
        norm = aligned.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        rescaled: torch.Tensor = aligned * (self.target_norm / norm)
        return rescaled.to(hidden.dtype)


def is_tied(input_weight: torch.Tensor, output_weight: torch.Tensor) -> bool:
    """Whether both are the same numbers, in one tensor or in two. [vocab_size, hidden_size]"""
    if input_weight.data_ptr() == output_weight.data_ptr():
        return True
    if input_weight.shape != output_weight.shape:
        return False
    chunks = (torch.split(weight, CHUNK_ROWS) for weight in (input_weight, output_weight))
    pairs = zip(*chunks, strict=True)
    return all(torch.equal(ours, theirs.to(ours.device)) for ours, theirs in pairs)


def alignment_matrix(input_weight: torch.Tensor, output_weight: torch.Tensor) -> torch.Tensor:
    """W [hidden_size, hidden_size] in fp32 by one solve of the regularised normal equations."""
    size = input_weight.shape[-1]
    gram, cross = input_weight.new_zeros(2, size, size, dtype=torch.float32)
    for start in range(0, input_weight.shape[0], CHUNK_ROWS):
        end = start + CHUNK_ROWS
        w_in = input_weight[start:end].float()
        w_out = output_weight[start:end].to(w_in.device).float()
        gram += w_out.T @ w_out
        cross += w_out.T @ w_in
    gram.diagonal().add_(RIDGE)
    matrix: torch.Tensor = torch.linalg.solve(gram, cross)
    return matrix


def realignment_of(model: Any, *, is_on: bool) -> Realignment:
    """The realignment of a causal language model of transformers."""
    input_weight = model.get_input_embeddings().weight.detach()
    output_weight = model.get_output_embeddings().weight.detach()
    return Realignment.from_embeddings(input_weight, output_weight, is_on=is_on)
