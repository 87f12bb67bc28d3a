"""The one place that knows object references and underscore API of Ray.

A stage streams small messages and, last, one packed buffer. What a streaming call yields is owned
by the caller and outlives the replica that made it; the ingress holds the reference, never the
bytes. The buffer travels as a numpy array: read without copying on the same node, and read-only, so
a consumer that wrote to it would fail instead of changing the memory of others.
"""

import asyncio
import logging
import warnings
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deployments.messages import Parcel, Place, StageCall, StageFailed, StageMade
from latentmas_core.errors import EngineError, LatentMASError, LostError, MemoryLostError
from latentmas_core.events import Event
from latentmas_core.latent.codec import KVLayout, PackedSegments, unpack
from latentmas_core.latent.int8_codec import Int8Segments, from_int8
from latentmas_core.latent.segment import Segment, SegmentTensors

GroupHandle = DeploymentHandle[Any]

_FAILURES_OF_RAY = (RayError, RayServeException)
_FULL = (ObjectStoreFullError, OutOfDiskError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WireSegments:
    """``PackedSegments``, or ``Int8Segments``, with the buffer as bytes [num_bytes].

    ``dtype`` is the model's.
    """

    segments: tuple[Segment, ...]
    layout: KVLayout
    has_kv: bool
    dtype: torch.dtype
    data: np.ndarray
    is_int8: bool = False


def to_wire(packed: PackedSegments | Int8Segments) -> WireSegments:
    """Without copying."""
    data = packed.buffer.view(torch.uint8).numpy()
    if isinstance(packed, Int8Segments):
        return WireSegments(packed.segments, packed.layout, True, packed.dtype, data, is_int8=True)
    return WireSegments(packed.segments, packed.layout, packed.has_kv, packed.buffer.dtype, data)


def from_wire(wire: WireSegments) -> PackedSegments | Int8Segments:
    """Without copying. The tensor may be backed by read-only memory: never write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        buffer = torch.from_numpy(wire.data)
    if wire.is_int8:
        return Int8Segments(wire.segments, wire.layout, wire.dtype, buffer)
    return PackedSegments(wire.segments, wire.layout, wire.has_kv, buffer.view(wire.dtype))


async def fetch(parcels: Iterable[Parcel]) -> dict[str, SegmentTensors]:
    """The content of parcels by segment id, as views of what lies in the object store; what came in
    8 bits as new tensors, computed beside the event loop.

    Raises MemoryLostError for what is not there any more.
    """
    contents: dict[str, SegmentTensors] = {}
    for wire in await asyncio.gather(*map(_fetch_one, parcels)):
        packed = from_wire(wire)
        if isinstance(packed, Int8Segments):
            contents |= await asyncio.to_thread(from_int8, packed)
        else:
            contents |= unpack(packed)
    return contents


async def _fetch_one(parcel: Parcel) -> WireSegments:
    if not isinstance(parcel.ref, ray.ObjectRef):
        wire: WireSegments = parcel.ref
        return wire
    try:
        wire = await parcel.ref
    except RayError as error:
        logger.warning("%d segments cannot be fetched: %s", len(parcel.segment_ids), error)
        raise MemoryLostError(
            f"memory of {parcel.num_bytes} bytes was lost on its way between agents, with the node "
            "that held it. Send the request again."
        ) from error
    return wire


async def stream_stage(
    handle: GroupHandle, call: StageCall
) -> AsyncGenerator[Event | StageMade | Parcel, None]:
    """Messages of a stage, then the parcel with its new segments, if it made any.

    Raises the error that the stage failed with; EngineError if its replica is gone or overloaded.
    Closing the iteration cancels the stage.
    """
    streaming = handle.options(stream=True, _by_reference=True)
    response = streaming.run_stage.remote(replace(call, caller=_this_actor()))
    assert isinstance(response, DeploymentResponseGenerator), "stream=True gives a generator"
    is_done = False
    try:
        refs = await response._to_object_ref_gen()
        made: StageMade | None = None
        async for ref in refs:
            if made is not None and ref != refs._generator_ref:
                yield Parcel(made.new_segment_ids, ref, made.num_bytes, made.place.node_id)
                continue
            message = await ref  # that of the generator raises what ended it
            if isinstance(message, StageFailed):
                is_done = True
                failure, message = message.error, None
                try:
                    raise failure
                finally:
                    # Error and frame would keep each other, and the memories of the call.
                    del failure
            if isinstance(message, StageMade):
                made = message
            yield message
        is_done = True
    except _FAILURES_OF_RAY as error:
        is_done = True
        raise as_engine_error(error, call.stage.group) from error
    finally:
        if not is_done:
            response.cancel()  # type: ignore[no-untyped-call]


def as_engine_error(error: Exception, group: str) -> LatentMASError:
    """What the caller is told when Ray, not the stage, says that something is wrong.

    LostError if the stage may be run again at once, EngineError if it may be later.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, LatentMASError):
        return cause
    if isinstance(cause, _FULL):
        return EngineError(
            f"the object store of a node of group {group!r} is full. Retry later, lower "
            "max_transfer_bytes, or give Ray a larger object store."
        )
    if isinstance(error, BackPressureError):
        return EngineError(f"group {group!r} is overloaded. Retry later.")
    if isinstance(error, DeploymentUnavailableError):
        return EngineError(f"group {group!r} is not available. See its status in the dashboard.")
    if isinstance(error, TaskCancelledError):
        return LostError(f"a stage of group {group!r} was cancelled. Send the request again.")
    if not isinstance(cause, _FAILURES_OF_RAY):
        return LatentMASError(f"a stage of group {group!r} failed. See the log of its replica.")
    return LostError(f"a replica of group {group!r} was lost. Send the request again.")


async def ask_a_replica(handle: GroupHandle, method: str, *arguments: Any) -> Any:
    """What some replica answers; one is started where the group is at zero. LatentMASError."""
    try:
        return await getattr(handle, method).remote(*arguments)
    except _FAILURES_OF_RAY as error:
        raise as_engine_error(error, handle.deployment_name) from error


async def ask_all_replicas(handle: GroupHandle, method: str, *arguments: Any) -> list[Any]:
    """What all replicas that run now answer: for one that is lost, or fails, a LatentMASError.

    Starts none and waits for none: a group may be at zero, or about to take a new config.
    """
    group = handle.deployment_name
    try:
        asked = handle.broadcast(method, *arguments)
        answers = await asked.results_async(return_exceptions=True)
    except DeploymentUnavailableError:
        return []
    except _FAILURES_OF_RAY as error:
        answers = [error]
    return [_answer_or_error(answer, method, group) for answer in answers]


def _answer_or_error(answer: Any, method: str, group: str) -> Any:
    if not isinstance(answer, BaseException):
        return answer
    if isinstance(answer, Exception):
        error = as_engine_error(answer, group)
    else:  # a cancellation that is not ours
        error = LostError(f"a replica of group {group!r} did not answer. Ask again.")
    logger.warning("%s on group %s: %s", method, group, error.message)
    return error


def this_place() -> Place:
    """The replica that asks, and the node that it is on."""
    return Place(
        replica=serve.get_replica_context().replica_id.unique_id,
        node_id=ray.get_runtime_context().get_node_id(),
    )


def rename_request(request_id: str) -> None:
    """Let Serve's own logs, and the replicas that are called, know the current request by this
    id; until now it was what the client called it."""
    known = serve.context._get_serve_request_context()
    renamed: Any = replace(known, request_id=request_id)  # Ray declares no type for it
    serve.context._serve_request_context.set(renamed)


def _this_actor() -> str | None:
    """The name by which other processes know this replica; None outside of one."""
    try:
        name: str = serve.get_replica_context().replica_id.to_full_id_str()
    except RayServeException:
        return None
    return name


def is_alive(actor: str) -> bool:
    """Whether a replica of that name lives. Blocks for a moment."""
    try:
        ray.get_actor(actor, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def object_store_bytes() -> int:
    """The object stores of all nodes together."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("object_store_memory", 0))
