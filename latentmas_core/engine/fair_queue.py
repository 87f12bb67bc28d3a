"""Who waits, and whose turn it is: the one whose kind was served least. Knows no blocks.

A virtual token counter per kind (VTC, Sheng et al. 2024, "Fairness in Serving Large Language
Models"): every row that is computed counts for its kind, and a kind that comes back after a pause
starts at the least of those that are there, so that nobody saves up. A kind is a set of adapters,
whatever their weights. Sequences of one kind go in the order they came, so with one kind this is a
plain queue. Kinds that wait for a first row have a head start on those that go on with an answer:
by so many rows at most, so that nobody starves. Nor does anybody starve behind kinds that are ever
new, as compositions can be: who came later counts as served for what was computed meanwhile, in
part.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from latentmas_core.engine.sequence import Kind, Sequence

HEAD_START_ROWS = 64
# Of so many rows that are computed before a sequence comes, one counts against it.
AGEING = 512


class FairQueue:
    """Waiting sequences by kind (``Sequence.kind``)."""

    def __init__(self) -> None:
        self._queues: dict[Kind, deque[Sequence]] = {}
        self._num_served: dict[Kind, int] = {}
        self._num_alive: Counter[Kind] = Counter()
        self._num_rows = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def enter(self, sequence: Sequence) -> None:
        """A new sequence waits; its kind is served from now on until all of it have left."""
        kind = sequence.kind
        if kind not in self._num_alive:
            least = min((self._num_served[other] for other in self._num_alive), default=0)
            self._num_served[kind] = max(self._num_served.get(kind, 0), least)
        self._num_alive[kind] += 1
        sequence.num_rows_before = self._num_rows
        self._queues.setdefault(kind, deque()).append(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence that entered has ended, waiting or not."""
        kind = sequence.kind
        if sequence in self._queues.get(kind, ()):
            self.take(sequence)
        self._num_alive[kind] -= 1
        if self._num_alive[kind] == 0:
            del self._num_alive[kind]
            self._forget_counters()

    def take(self, sequence: Sequence) -> None:
        """A sequence waits no longer."""
        queue = self._queues[sequence.kind]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.kind]

    def put_back(self, sequence: Sequence) -> None:
        """A sequence that was taken waits again, before all others of its kind."""
        self._queues.setdefault(sequence.kind, deque()).appendleft(sequence)

    def charge(self, sequence: Sequence, num_rows: int) -> None:
        self._num_served[sequence.kind] += num_rows
        self._num_rows += num_rows

    def num_served(self, kind: Kind) -> int:
        """Rows that count for a kind; 0 for one that is not there."""
        return self._num_served.get(kind, 0)

    def first(self) -> Sequence | None:
        """The head of the kind that was served least."""
        kind = min(self._queues, key=self._entry, default=None)
        return None if kind is None else self._queues[kind][0]

    def in_turn(self) -> "Iterator[Sequence]":
        """Heads of the kinds, least served first.

        A head that was taken meanwhile is followed by the next of its kind, at its new place; one
        that was left where it is is passed over with its kind.
        """
        heap = [self._entry(kind) for kind in self._queues]
        heapq.heapify(heap)
        while heap:
            _, _, kind = heapq.heappop(heap)
            sequence = self._queues[kind][0]
            yield sequence
            if kind in self._queues and self._queues[kind][0] is not sequence:
                heapq.heappush(heap, self._entry(kind))

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raise AssertionError if those alive are not those that wait or run."""
        there = Counter(sequence.kind for sequence in (*self, *running))
        assert self._num_alive == there, f"{self._num_alive} alive, {there} wait or run"

    def _entry(self, kind: Kind) -> tuple[int, int, Kind]:
        queue = self._queues[kind]
        # The suspended ones of a kind stand before the others.
        handicap = HEAD_START_ROWS if queue[-1].is_suspended else 0
        age = queue[0].num_rows_before // AGEING
        return self._num_served[kind] + handicap + age, queue[0].sequence_id, kind

    def _forget_counters(self) -> None:
        """Kinds that would start at the least anyway need no counter: the table stays small."""
        least = min((self._num_served[kind] for kind in self._num_alive), default=None)
        self._num_served = {
            kind: num_served
            for kind, num_served in self._num_served.items()
            if kind in self._num_alive or (least is not None and num_served > least)
        }
