"""What crosses a deployment handle: plain picklable data, and references to packed memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.routing import RoutingHint
from deployments.logs import NO_ORIGIN, Origin
from latentmas_core.errors import LatentMASError
from latentmas_core.events import Event
from latentmas_core.latent.memory import Memory
from latentmas_core.lora.library import AdapterInfo, AdapterSource
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.runner import Said
from latentmas_core.request import ReasonRequest


@dataclass(frozen=True)
class Place:
    """Where a stage ran: a replica of its group, and Ray's id of the node."""

    replica: str | None = None
    node_id: str | None = None


NOWHERE = Place()  # where there is no cluster


@dataclass(frozen=True)
class Parcel:
    """Packed segments that lie in the object store. ``ref`` keeps them alive."""

    segment_ids: tuple[str, ...]
    ref: Any  # ray.ObjectRef, or the packed segments themselves where there is no object store
    num_bytes: int
    node_id: str | None = None


class LoadedAdapter(NamedTuple):
    """What a replica says of one adapter; ``source`` is where it got it from.

    ``is_operators``: the operator named that place, so it need not be under the roots for clients.
    """

    info: AdapterInfo
    source: AdapterSource
    is_operators: bool = False


@dataclass(frozen=True)
class RemoteMemory:
    """A memory whose segments lie in parcels; held by the ingress, read by replicas.

    ``adapters``: where embeddings are handed over, those that whoever computes it again needs.
    """

    memory: Memory
    parcels: tuple[Parcel, ...]
    adapters: tuple[LoadedAdapter, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(parcel.num_bytes for parcel in self.parcels)


class ModelReading(NamedTuple):
    """How a group's model reads: its tokenizer, as in tokenizer.json, and how much fits it."""

    tokenizer_json: str
    max_positions: int


class AdapterFailed(NamedTuple):
    """An error as data, so that no traceback hides it and other replicas' answers still come."""

    error: LatentMASError


class AdapterOrder(NamedTuple):
    """An adapter that all replicas are to load; ``order_id`` is for taking that back."""

    source: AdapterSource
    is_operators: bool
    order_id: str


class AdapterListing(NamedTuple):
    """The adapters of one replica. ``unloaded``: names that it was told to forget.

    ``by_group``: those that its group's own config loads, whatever was unloaded before.
    """

    loaded: tuple[LoadedAdapter, ...]
    unloaded: frozenset[str] = frozenset()
    by_group: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StageCall:
    """One stage to be run by a group: what it reads is fetched by the replica itself.

    ``adapters``: those that the stage needs, as they were when the request began. A replica that
    lacks one loads it; one that has another of its name refuses the call. ``caller``: whose death
    ends the stage, where it has one. ``is_streamed``: what happens is sent as it happens; each
    event is an object of Ray's, which nobody should pay for who waits for the whole. Without it
    only the agents' traces are sent. ``origin``: whose work it is, for logs; ``trace_context``: the
    span that it is done below, if it is traced.
    """

    stage: Stage
    memory: RemoteMemory | None
    transcript: tuple[Said, ...]
    request: ReasonRequest
    adapters: tuple[LoadedAdapter, ...] = ()
    caller: str | None = None
    is_streamed: bool = True
    origin: Origin = NO_ORIGIN
    trace_context: Mapping[str, str] = field(default_factory=dict)

    @property
    def digests(self) -> dict[str, str]:
        """What the names of its adapters stand for."""
        return {loaded.info.name: loaded.info.digest for loaded in self.adapters}

    @property
    def all_adapters(self) -> tuple[LoadedAdapter, ...]:
        """Those of the stage, and those that made what it computes again."""
        of_memory = self.memory.adapters if self.memory else ()
        every = (*self.adapters, *of_memory)
        return tuple({(one.info.name, one.info.digest): one for one in every}.values())

    @property
    def routing_hint(self) -> RoutingHint:
        """For the router: replicas that have the adapters, nodes that have the memory."""
        parcels = self.memory.parcels if self.memory else ()
        return RoutingHint(
            adapters=tuple({one.info.name: None for one in self.all_adapters}),
            node_ids=tuple({p.node_id: None for p in parcels if p.node_id is not None}),
        )


@dataclass(frozen=True)
class StageMade:
    """The end of a stage. With ``memory`` the packed new segments follow as the very last item.

    ``num_bytes`` are theirs, ``num_bytes_read`` those that the stage fetched. ``adapters``: what
    computing the whole memory again takes, where embeddings are handed over.
    """

    memory: Memory | None
    new_segment_ids: tuple[str, ...]
    num_bytes: int
    said: tuple[Said, ...]
    finish_reason: str
    num_bytes_read: int = 0
    place: Place = NOWHERE
    adapters: tuple[LoadedAdapter, ...] = ()


@dataclass(frozen=True)
class StageFailed:
    """An error that the caller is to see; sent as data, so that no traceback hides it."""

    error: LatentMASError


StageMessage = Event | StageMade | StageFailed
