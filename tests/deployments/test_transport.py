"""Packed memory on the wire, and what a caller is told when Ray itself fails."""

import asyncio

import numpy as np
import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from deployments.messages import Parcel
from deployments.transport import (
    WireSegments,
    as_engine_error,
    ask_all_replicas,
    fetch,
    from_wire,
    to_wire,
)
from latentmas_core.errors import (
    ContextLengthError,
    EngineError,
    LatentMASError,
    LostError,
    SegmentError,
)
from latentmas_core.latent.codec import unpack
from latentmas_core.latent.int8_codec import to_int8
from tests.deployments.wire import make_packed, make_segment, make_tensors, send


@pytest.fixture
def packed():
    return make_packed(make_segment("planner"), make_segment("critic", num_latents=1))


def address_of(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("has_kv", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_changes_nothing(dtype, has_kv):
    sent = make_packed(make_segment("planner"), make_segment("critic"), dtype=dtype, has_kv=has_kv)
    received = from_wire(send(to_wire(sent)))
    assert (received.segments, received.layout, received.has_kv) == (
        sent.segments,
        sent.layout,
        sent.has_kv,
    )
    assert received.buffer.dtype == dtype
    assert torch.equal(received.buffer, sent.buffer)


def test_nothing_is_copied_on_either_side(packed):
    wire = to_wire(packed)
    assert address_of(wire.data) == packed.buffer.data_ptr()
    assert from_wire(wire).buffer.data_ptr() == address_of(wire.data)
    received = send(wire)
    assert from_wire(received).buffer.data_ptr() == address_of(received.data)


def test_segments_in_8_bits_travel_as_they_are_and_come_out_in_the_models_dtype(packed):
    sent = to_int8(packed)
    wire = to_wire(sent)
    assert wire.data.nbytes == sent.num_bytes < packed.num_bytes
    received = from_wire(send(wire))
    assert torch.equal(received.buffer, sent.buffer)
    contents = asyncio.run(fetch([Parcel((), send(wire), sent.num_bytes)]))
    for segment_id, exact in unpack(packed).items():
        keys = contents[segment_id].kv.keys
        assert keys.dtype == exact.kv.keys.dtype
        torch.testing.assert_close(keys, exact.kv.keys, rtol=0.01, atol=0.05)


def test_buffer_is_announced_in_bytes(packed):
    assert to_wire(packed).data.dtype == np.uint8
    assert to_wire(packed).data.nbytes == packed.num_bytes


def test_content_are_views_of_a_buffer_that_may_be_read_only(packed):
    received = send(to_wire(packed))
    assert not received.data.flags.writeable
    contents = unpack(from_wire(received))
    begin = address_of(received.data)
    for segment in packed.segments:
        for tensor in (contents[segment.segment_id].latents, contents[segment.segment_id].kv.keys):
            assert begin <= tensor.data_ptr() < begin + packed.num_bytes


def test_thought_without_a_step_travels_as_no_bytes_at_all():
    sent = make_packed(make_segment(num_latents=0), has_kv=False)
    received = from_wire(send(to_wire(sent)))
    assert received.num_bytes == 0
    (content,) = unpack(received).values()
    assert content.latents.shape == (0, sent.layout.hidden_size)


async def test_fetching_joins_the_contents_of_all_parcels():
    segments = [make_segment("planner"), make_segment("critic")]
    parcels = [
        Parcel((segment.segment_id,), send(to_wire(make_packed(segment))), 0)
        for segment in segments
    ]
    contents = await fetch(parcels)
    assert list(contents) == [segment.segment_id for segment in segments]
    expected = make_tensors(segments[1], torch.float32)
    assert torch.equal(contents[segments[1].segment_id].latents, expected.latents)


async def test_parcel_that_was_cut_is_refused(packed):
    wire = to_wire(packed)
    cut = WireSegments(wire.segments, wire.layout, wire.has_kv, wire.dtype, wire.data[:-4])
    with pytest.raises(SegmentError, match="elements"):
        await fetch([Parcel(("x",), cut, cut.data.nbytes)])


def task_error(cause):
    """As awaiting a reference raises it: an error of both types."""
    return RayTaskError("run_stage", "a traceback", cause).as_instanceof_cause()


def test_error_of_the_stage_itself_comes_out_of_its_wrapping():
    cause = ContextLengthError("too long.", param="question")
    assert as_engine_error(task_error(cause), "thinkers") is cause


LOST = "a replica of group 'thinkers' was lost"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BackPressureError(9, 8), EngineError, "group 'thinkers' is overloaded"),
        (
            DeploymentUnavailableError(DeploymentID("thinkers")),
            EngineError,
            "'thinkers' is not available",
        ),
        (task_error(ObjectStoreFullError("x")), EngineError, "group 'thinkers' is full"),
        (task_error(OutOfDiskError("x")), EngineError, "group 'thinkers' is full"),
        (TaskCancelledError(), LostError, "a stage of group 'thinkers' was cancelled"),
        (ActorDiedError(), LostError, LOST),
        (ActorUnavailableError("gone", None), LostError, LOST),
        (WorkerCrashedError(), LostError, LOST),
        (ObjectLostError("00", None, ""), LostError, LOST),
        (OwnerDiedError("00", None, ""), LostError, LOST),
        (GetTimeoutError(), LostError, LOST),
        (RayServeException("upstream"), LostError, LOST),
        (task_error(OwnerDiedError("00", None, "")), LostError, LOST),
        (task_error(RayServeException("upstream")), LostError, LOST),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failure_of_ray_says_which_group_and_whether_to_try_again_at_once(error, kind, message):
    told = as_engine_error(error, "thinkers")
    assert type(told) is kind
    assert message in told.message
    assert told.message.endswith(".")


def test_bug_in_a_stage_is_no_reason_to_try_again_and_leaks_nothing():
    told = as_engine_error(task_error(ValueError("secret")), "thinkers")
    assert type(told) is LatentMASError
    assert told.message == "a stage of group 'thinkers' failed. See the log of its replica."


class Replicas:
    """A handle whose replicas answer, or fail, as they are told."""

    deployment_name = "thinkers"

    def __init__(self, *outcomes, error=None):
        self._outcomes = outcomes
        self._error = error

    def broadcast(self, method, *arguments):
        self.asked = (method, *arguments)
        return self

    async def results_async(self, *, return_exceptions):
        assert return_exceptions, "one that is lost would hide what the others say"
        if self._error is not None:
            raise self._error
        return list(self._outcomes)


async def test_replica_that_is_lost_does_not_hide_what_the_others_say():
    handle = Replicas("first", ActorDiedError(), "third")
    first, lost, third = await ask_all_replicas(handle, "method", 1)
    assert (first, third) == ("first", "third")
    assert isinstance(lost, LostError)
    assert "'thinkers'" in lost.message
    assert handle.asked == ("method", 1)


async def test_group_that_cannot_be_asked_is_told_and_one_without_replicas_says_nothing():
    (lost,) = await ask_all_replicas(Replicas(error=RayServeException("is gone")), "method")
    assert isinstance(lost, LostError)
    deployment = DeploymentID("thinkers", "app")
    assert await ask_all_replicas(Replicas(error=DeploymentUnavailableError(deployment)), "m") == []
