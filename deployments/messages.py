"""What crosses a deployment handle: plain picklable data, and references to packed memory."""

from dataclasses import dataclass
from typing import Any

from cluster.routing import RoutingHint
from latentmas_core.errors import LatentMASError
from latentmas_core.events import Event
from latentmas_core.latent.memory import Memory
from latentmas_core.lora.library import AdapterSource
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


@dataclass(frozen=True)
class RemoteMemory:
    """A memory whose segments lie in parcels; held by the ingress, read by replicas."""

    memory: Memory
    parcels: tuple[Parcel, ...]

    @property
    def num_bytes(self) -> int:
        return sum(parcel.num_bytes for parcel in self.parcels)


@dataclass(frozen=True)
class StageCall:
    """One stage to be run by a group: what it reads is fetched by the replica itself.

    ``adapters``: where those come from that the request needs, for a replica that lacks one.
    """

    stage: Stage
    memory: RemoteMemory | None
    transcript: tuple[Said, ...]
    request: ReasonRequest
    adapters: tuple[AdapterSource, ...] = ()

    @property
    def routing_hint(self) -> RoutingHint:
        """For the router: replicas that have the adapters, nodes that have the memory."""
        parcels = self.memory.parcels if self.memory else ()
        return RoutingHint(
            adapters=tuple(source.name for source in self.adapters),
            node_ids=tuple({p.node_id: None for p in parcels if p.node_id is not None}),
        )


@dataclass(frozen=True)
class StageMade:
    """The end of a stage. With ``memory`` the packed new segments follow as the very last item.

    ``num_bytes`` are theirs, ``num_bytes_read`` those that the stage fetched.
    """

    memory: Memory | None
    new_segment_ids: tuple[str, ...]
    num_bytes: int
    said: tuple[Said, ...]
    finish_reason: str
    num_bytes_read: int = 0
    place: Place = NOWHERE


@dataclass(frozen=True)
class StageFailed:
    """An error that the caller is to see; sent as data, so that no traceback hides it."""

    error: LatentMASError


StageMessage = Event | StageMade | StageFailed
