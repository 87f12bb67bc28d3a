"""Where the replicas of groups find room on given nodes.

Pure. Ray decides where a replica really goes; this tells whether there is room, and one way to
use it. GPUs are counted as Ray counts them: by num_gpus alone, in steps of a ten-thousandth.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

WHOLE = 10_000
MAX_SHOWN_NODES = 4


@dataclass(frozen=True)
class Node:
    """A machine, or a pod: what Ray may give to replicas of it."""

    name: str
    num_cpus: float
    num_gpus: int = 0


@dataclass(frozen=True)
class Demand:
    """``num_replicas`` of one group, and what each takes; ``memory_share`` of each of its cards."""

    group: str
    num_replicas: int
    num_cpus: float
    num_gpus: float = 0.0
    memory_share: float | None = None


@dataclass(frozen=True)
class Seat:
    """One replica on one node; on a card, or several, it has ``share`` of each."""

    group: str
    replica: int
    node: str
    cards: tuple[int, ...] = ()
    share: float = 0.0


@dataclass(frozen=True)
class Shortage:
    """A group of which not all replicas find room."""

    group: str
    message: str


@dataclass(frozen=True)
class Placement:
    """``shortages`` is empty when every replica has a seat and no card is promised twice."""

    seats: tuple[Seat, ...]
    shortages: tuple[Shortage, ...]

    def seats_of(self, group: str) -> tuple[Seat, ...]:
        return tuple(seat for seat in self.seats if seat.group == group)


@dataclass
class _Room:
    """What is left of a node, in steps of a ten-thousandth."""

    node: Node
    cpus: int
    cards: list[int]
    memory_of: list[dict[str, float]] = field(default_factory=list)
    num_seats: int = 0

    @classmethod
    def of(cls, node: Node) -> "_Room":
        cards = [WHOLE] * node.num_gpus
        return cls(node, _steps(node.num_cpus), cards, [{} for _ in cards])

    def cards_for(self, demand: Demand) -> tuple[int, ...] | None:
        """The cards that a replica would take; None where it does not fit."""
        if _steps(demand.num_cpus) > self.cpus:
            return None
        share, num_cards = _share(demand), _num_cards(demand)
        free = [i for i, left in enumerate(self.cards) if left >= share]
        return tuple(free[:num_cards]) if len(free) >= num_cards else None

    def take(self, demand: Demand, cards: Iterable[int]) -> None:
        self.num_seats += 1
        self.cpus -= _steps(demand.num_cpus)
        for card in cards:
            self.cards[card] -= _share(demand)
            taken = self.memory_of[card]
            taken[demand.group] = taken.get(demand.group, 0.0) + (demand.memory_share or 0.0)

    def __str__(self) -> str:
        cards = ", ".join(f"{left / WHOLE:g}" for left in self.cards)
        return f"{self.node.name}: {self.cpus / WHOLE:g} CPUs, GPUs {cards or 'none'}"


def place(nodes: Sequence[Node], demands: Iterable[Demand], *, spreads: bool = False) -> Placement:
    """Seat all replicas: those with most cards first, then fractions, then those without.

    ``spreads``: as Serve does it unless it is told to pack; each replica, in the order given, goes
    to the node with the fewest so far. No node may then have the cards that a later one needs.
    """
    rooms = [_Room.of(node) for node in nodes]
    order = list(demands)
    if not spreads:
        order.sort(key=lambda demand: (-demand.num_gpus, -demand.num_cpus))
    seats: list[Seat] = []
    shortages: list[Shortage] = []
    for demand in order:
        seated = list(_seat(demand, rooms, spreads=spreads))
        seats += seated
        if len(seated) < demand.num_replicas:
            shortages.append(_shortage(demand, len(seated), rooms))
    return Placement(tuple(seats), (*shortages, *_overcommitted(rooms)))


def _seat(demand: Demand, rooms: Sequence[_Room], *, spreads: bool) -> Iterator[Seat]:
    for replica in range(demand.num_replicas):
        for room in sorted(rooms, key=lambda room: room.num_seats if spreads else 0):
            cards = room.cards_for(demand)
            if cards is not None:
                room.take(demand, cards)
                share = _share(demand) / WHOLE if cards else 0.0
                yield Seat(demand.group, replica, room.node.name, cards, share)
                break
        else:
            return


def _shortage(demand: Demand, num_seated: int, rooms: Sequence[_Room]) -> Shortage:
    shown = "; ".join(str(room) for room in rooms[:MAX_SHOWN_NODES])
    more = f"; and {len(rooms) - MAX_SHOWN_NODES} more" if len(rooms) > MAX_SHOWN_NODES else ""
    together = " on one node" if demand.num_gpus > 1 else ""
    return Shortage(
        demand.group,
        f"group {demand.group!r} asks for {demand.num_replicas} x (num_cpus {demand.num_cpus:g}, "
        f"num_gpus {demand.num_gpus:g}{together}); there is room for {num_seated}. Left are "
        f"{shown or 'no nodes'}{more}. Lower what a group takes, or add a node",
    )


def _overcommitted(rooms: Iterable[_Room]) -> Iterator[Shortage]:
    """Cards of which the replicas on them may take more memory than there is."""
    for room in rooms:
        for card, shares in enumerate(room.memory_of):
            total = sum(shares.values())
            if round(total * WHOLE) > WHOLE:
                groups = ", ".join(f"{name} {share:g}" for name, share in shares.items())
                yield Shortage(
                    next(iter(shares)),
                    f"memory of GPU {card} of {room.node.name} is promised {total:g} times "
                    f"({groups}); at most 1. Lower gpu_memory_share, or raise num_gpus so that "
                    "fewer replicas meet on a card",
                )


def _num_cards(demand: Demand) -> int:
    return 0 if demand.num_gpus == 0 else max(1, round(demand.num_gpus))


def _share(demand: Demand) -> int:
    """Of each card that a replica has a part in."""
    return min(WHOLE, _steps(demand.num_gpus))


def _steps(amount: float) -> int:
    return round(amount * WHOLE)
