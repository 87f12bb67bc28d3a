"""The LoRA term of a step: y += weight (x A^T) B^T, on the rows of each adapter alone.

The rows of a step are sorted by adapter, so each adapter has whole segments of neighbouring rows
(SGMV of Punica, Chen et al. 2023, in matrix products); rows of the base model are in no segment
and stay untouched.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from latentmas_core.lora.terms import AdapterTerms, Term

# Up to so many bytes of an adapter at a site, copies side by side are multiplied sooner than the
# matrices where they lie: one call, in which all threads read. Rank 16 gains on a CPU, 64 loses
# (benchmarks.lora --only scattered).
MAX_COPIED_BYTES = 256 * 1024


class Segment(NamedTuple):
    """Neighbouring rows of a step: ``num_rows`` for each of ``num_adapters`` adapters.

    ``adapter`` is the first of them; each further one lies ``stride`` elements behind the last.
    """

    start: int
    num_rows: int
    adapter: AdapterTerms
    weight: float
    num_adapters: int = 1
    stride: int = 0

    @property
    def end(self) -> int:
        return self.start + self.num_adapters * self.num_rows

    @property
    def offsets(self) -> list[int]:
        """Where each of its adapters lies."""
        return [self.adapter.offset + k * self.stride for k in range(self.num_adapters)]


class LoRABatch:
    """The adapters of one step, the same for all layers.

    Adapters of one layout with equally many rows are multiplied together, as one batch of
    matrices: without a copy where they lie at equal distances, else out of copies if they are
    small.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self.segments: list[Segment] = []
        for segment in segments:
            joined = _join(self.segments[-1], segment) if self.segments else None
            if joined is None:
                self.segments.append(segment)
            else:
                self.segments[-1] = joined
        self._stretches = _stretches(self.segments)

    def add(self, layer_idx: int, site: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the terms to ``y`` [num_rows, out_features] in place; x: [num_rows, in_features]."""
        for stretch in self._stretches:
            term = stretch.lowest.by_layer[layer_idx][site]
            if term is None:
                continue
            if stretch.is_even or term.num_bytes > MAX_COPIED_BYTES:
                for segment in stretch.segments:
                    _add_segment(segment, layer_idx, site, x, y)
            else:
                stretch.add_copied(site, term, x, y)


class Stretch:
    """Neighbouring segments of one layout and weight with equally many rows for each adapter."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.is_even = len(segments) == 1
        self.lowest = min(segments, key=lambda segment: segment.adapter.offset).adapter
        self._distances = [
            offset - self.lowest.offset for segment in segments for offset in segment.offsets
        ]
        # By site, and by device where layers lie on several: the same for all layers.
        self._copies: dict[tuple[int, torch.device], tuple[_Copies, _Copies]] = {}

    def add_copied(self, site: int, term: Term, x: torch.Tensor, y: torch.Tensor) -> None:
        """``term``: that of the lowest adapter; the others are found by their distance from it."""
        key = site, term.a_t.device
        if key not in self._copies:
            self._copies[key] = (
                _Copies.of(self._distances, term.num_a, key[1]),
                _Copies.of(self._distances, term.num_b, key[1]),
            )
        of_a, of_b = self._copies[key]
        count = len(self._distances)
        a = of_a.take(term.a_t).view(count, *reversed(term.a_t.shape))
        b = of_b.take(term.expands[0].b)  # [count, num_b], of the expand matrices of all targets
        sizes = [expand.b.numel() for expand in term.expands]
        expands = [
            part.view(count, *expand.b.shape)
            for part, expand in zip(torch.split(b, sizes, dim=1), term.expands, strict=True)
        ]
        start, end = self.segments[0].start, self.segments[-1].end
        rows = x.narrow(0, start, end - start), y.narrow(0, start, end - start)
        _add_many(term, a.transpose(1, 2), expands, *rows, self.segments[0].weight)


class _Copies(NamedTuple):
    """Copies of ``size`` elements from several places, in pieces of ``unit`` elements.

    pieces: [num_adapters * size / unit], each piece's number counted from the lowest place.
    """

    size: int
    unit: int
    num_pieces: int
    pieces: torch.Tensor

    @classmethod
    def of(cls, distances: Sequence[int], size: int, device: torch.device) -> "_Copies":
        unit = math.gcd(size, *distances)
        starts = torch.tensor(distances)[:, None] // unit
        pieces = (starts + torch.arange(size // unit)).flatten()
        return cls(size, unit, (max(distances) + size) // unit, pieces.to(device))

    def take(self, lowest: torch.Tensor) -> torch.Tensor:
        """[num_adapters, size]; ``lowest`` begins where the lowest of them lies."""
        places = lowest.as_strided((self.num_pieces, self.unit), (self.unit, 1))
        return places.index_select(0, self.pieces).view(-1, self.size)


def _add_segment(
    segment: Segment, layer_idx: int, site: int, x: torch.Tensor, y: torch.Tensor
) -> None:
    term = segment.adapter.by_layer[layer_idx][site]
    assert term is not None, "adapters of one layout have the same targets"
    num_rows = segment.end - segment.start
    x_rows = x.narrow(0, segment.start, num_rows)
    y_rows = y.narrow(0, segment.start, num_rows)
    if segment.num_adapters == 1:
        _add_one(term, x_rows, y_rows, segment.weight)
        return
    # Views of all of them, out of those of the first.
    count, stride = segment.num_adapters, segment.stride
    in_features, num_ranks = term.a_t.shape
    a_t = term.a_t.as_strided((count, in_features, num_ranks), (stride, 1, in_features))
    expands = [
        expand.b.as_strided((count, *expand.b.shape), (stride, *expand.b.stride()))
        for expand in term.expands
    ]
    _add_many(term, a_t, expands, x_rows, y_rows, segment.weight)


def _add_one(term: Term, x: torch.Tensor, y: torch.Tensor, weight: float) -> None:
    z = torch.mm(x, term.a_t)
    for out_start, num_out, rank_start, b in term.expands:
        part = z.narrow(1, rank_start, term.rank)
        y.narrow(1, out_start, num_out).addmm_(part, b, alpha=weight)


def _add_many(
    term: Term,
    a_t: torch.Tensor,
    expands: Sequence[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    weight: float,
) -> None:
    """The same for adapters of one layout. a_t: [count, in_features, num_ranks], expands: each
    [count, rank, num_out], x, y: equally many rows for each adapter."""
    count = a_t.shape[0]
    z = torch.bmm(x.reshape(count, -1, x.shape[-1]), a_t)
    rows = y.view(count, -1, y.shape[-1])
    for (out_start, num_out, rank_start, _), b in zip(term.expands, expands, strict=True):
        part = z.narrow(2, rank_start, term.rank)
        rows.narrow(2, out_start, num_out).baddbmm_(part, b, alpha=weight)


def _are_alike(left: Segment, right: Segment) -> bool:
    return (
        left.num_rows == right.num_rows
        and left.weight == right.weight
        and left.end == right.start
        and left.adapter.layout == right.adapter.layout
    )


def _join(left: Segment, right: Segment) -> Segment | None:
    """Both as one segment, where the second goes on just as the first."""
    last = left.adapter.offset + (left.num_adapters - 1) * left.stride
    stride = right.adapter.offset - last
    is_even = stride > 0 and (left.num_adapters == 1 or stride == left.stride)
    if not is_even or not _are_alike(left, right):
        return None
    return left._replace(num_adapters=left.num_adapters + 1, stride=stride)


def _stretches(segments: Sequence[Segment]) -> list[Stretch]:
    """Neighbours that are alike, together."""
    stretches: list[list[Segment]] = []
    for segment in segments:
        if stretches and _are_alike(stretches[-1][-1], segment):
            stretches[-1].append(segment)
        else:
            stretches.append([segment])
    return [Stretch(stretch) for stretch in stretches]
