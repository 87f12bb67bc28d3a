"""Adapters with a row each that lie in a row with gaps: one batch of products, gaps included.

What lies in a gap is multiplied too, by a row of another adapter, and its result is dropped: that
costs less than a product for each piece between gaps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from latentmas_core.lora.terms import AdapterTerms, Segment, Term

# With a gather before and a scatter behind, fewer pieces are quicker one by one.
MIN_PIECES = 3
# Places between two pieces at most: each is as much work as one of the adapters.
MAX_GAP = 3


@dataclass(frozen=True)
class _Indices:
    """rows, places: [num_adapters], a row of the step and the place of its adapter. sources:
    [num_places], the row that each place is multiplied by."""

    rows: torch.Tensor
    places: torch.Tensor
    sources: torch.Tensor

    def to(self, device: torch.device) -> "_Indices":
        return _Indices(self.rows.to(device), self.places.to(device), self.sources.to(device))


class Spread:
    """``members``: segments of one row and one adapter each, of one layout and weight, in the order
    in which they lie, at multiples of their extent."""

    def __init__(self, members: Sequence[Segment]) -> None:
        first = members[0]
        self.adapter: AdapterTerms = first.adapter
        self._weight = first.weight
        self._stride = first.adapter.extent
        rows = [member.start for member in members]
        places = [_distance(first, member) for member in members]
        self._num_places = places[-1] + 1
        sources = [rows[0]] * self._num_places
        for row, place in zip(rows, places, strict=True):
            sources[place] = row
        indices = _Indices(*map(torch.tensor, (rows, places, sources)))
        self._indices = {indices.rows.device: indices}

    def add(self, term: Term, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the terms to ``y`` [num_rows, out_features] in place; x: [num_rows, in_features]."""
        at = self._indices_on(x.device)
        count, stride = self._num_places, self._stride
        in_features, num_ranks = term.a_t.shape
        a_t = term.a_t.as_strided((count, in_features, num_ranks), (stride, 1, in_features))
        z = torch.bmm(x.index_select(0, at.sources)[:, None], a_t)  # [count, 1, num_ranks]
        sums = y.index_select(0, at.sources)[:, None]  # [count, 1, out_features]
        for out_start, num_out, rank_start, first in term.expands:
            b = first.as_strided((count, term.rank, num_out), (stride, num_out, 1))
            part = z.narrow(2, rank_start, term.rank)
            sums.narrow(2, out_start, num_out).baddbmm_(part, b, alpha=self._weight)
        y.index_copy_(0, at.rows, sums[:, 0].index_select(0, at.places))

    def _indices_on(self, device: torch.device) -> _Indices:
        if device not in self._indices:
            self._indices[device] = next(iter(self._indices.values())).to(device)
        return self._indices[device]


def find_spreads(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Those that are worth it, each with its members; a segment is in one at most.

    ``segments``: of one adapter each, in the order of their rows, equal layouts as they lie.
    """
    spreads: list[list[Segment]] = []
    for segment in (segment for segment in segments if segment.num_rows == 1):
        if spreads and _goes_on(spreads[-1][-1], segment):
            spreads[-1].append(segment)
        else:
            spreads.append([segment])
    return [members for members in spreads if _num_pieces(members) >= MIN_PIECES]


def _goes_on(left: Segment, right: Segment) -> bool:
    """Whether ``right`` lies behind ``left``, after a gap of whole places that is not too wide.

    Rows of a composition do not: each place adds to a row of its own.
    """
    is_alike = left.weight == right.weight and left.adapter.layout == right.adapter.layout
    if not is_alike or right.start < left.end:
        return False
    distance = right.adapter.offset - left.adapter.offset
    return distance % left.adapter.extent == 0 and 1 <= _distance(left, right) <= MAX_GAP + 1


def _distance(left: Segment, right: Segment) -> int:
    """In places."""
    return (right.adapter.offset - left.adapter.offset) // left.adapter.extent


def _num_pieces(members: Sequence[Segment]) -> int:
    """Products that they would take by themselves."""
    return 1 + sum(
        _distance(left, right) > 1 or right.start > left.end for left, right in pairwise(members)
    )
