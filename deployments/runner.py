"""ServeAgentRunner: runs stages on deployments; memories are references into the object store."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from deployments.budget import RunAccount
from deployments.logs import NO_ORIGIN, Origin
from deployments.messages import LoadedAdapter, Parcel, RemoteMemory, StageCall, StageMade
from deployments.spans import NO_SPANS, Attempt, RunSpans
from deployments.transport import GroupHandle, stream_stage
from latentmas_core.events import Event
from latentmas_core.latent.memory import merge
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.runner import StageDone, StageInputs
from latentmas_core.request import ReasonRequest

StageItem = Event | StageDone[RemoteMemory]


class ServeAgentRunner:
    """An ``AgentRunner`` over deployment handles, one per group. No memory passes through it.

    ``account`` counts the memories that it hands out. ``adapters``: those that each stage needs, by
    its name. ``is_streamed``: whether anybody reads what happens on the way. ``spans``: those of
    its run.
    """

    def __init__(
        self,
        handles: Mapping[str, GroupHandle],
        account: RunAccount,
        adapters: Mapping[str, tuple[LoadedAdapter, ...]],
        *,
        is_streamed: bool = True,
        origin: Origin = NO_ORIGIN,
        spans: RunSpans = NO_SPANS,
    ) -> None:
        self._handles = handles
        self._account = account
        self._adapters = adapters
        self._is_streamed = is_streamed
        self._origin = origin
        self._spans = spans

    def think(
        self, stage: Stage, inputs: StageInputs[RemoteMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        return self._run(stage, inputs, request)

    def speak(
        self, stage: Stage, inputs: StageInputs[RemoteMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        return self._run(stage, inputs, request)

    async def release(self, memory: RemoteMemory) -> None:
        """The object store frees a parcel with its last reference; the account is told."""
        self._account.drop(memory)

    async def _run(
        self, stage: Stage, inputs: StageInputs[RemoteMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        with self._spans.attempt(stage) as attempt:
            async with aclosing(self._attempt(stage, inputs, request, attempt)) as items:
                async for item in items:
                    yield item

    async def _attempt(
        self,
        stage: Stage,
        inputs: StageInputs[RemoteMemory],
        request: ReasonRequest,
        attempt: Attempt,
    ) -> AsyncGenerator[StageItem, None]:
        memory = _join(stage, inputs, request)
        adapters = self._adapters[stage.name]
        call = StageCall(
            stage,
            memory,
            inputs.transcript,
            request,
            adapters,
            is_streamed=self._is_streamed,
            origin=self._origin,
            trace_context=attempt.context,
        )
        made: StageMade | None = None
        parcels = call.memory.parcels if call.memory else ()
        async with aclosing(stream_stage(self._handles[stage.group], call)) as messages:
            async for message in messages:
                if isinstance(message, StageMade):
                    made = message
                elif isinstance(message, Parcel):
                    parcels = (*parcels, message)
                else:
                    yield message
        assert made is not None, f"stage {stage.name!r} ended without StageMade"
        attempt.note_made(made)
        left = RemoteMemory(made.memory, parcels, made.adapters) if made.memory else None
        if left is not None:
            self._account.hold(left)
        yield StageDone(
            memory=left,
            said=made.said,
            num_bytes=made.num_bytes,
            finish_reason=made.finish_reason,
            num_bytes_read=made.num_bytes_read,
            replica=made.place.replica,
        )


def _join(
    stage: Stage, inputs: StageInputs[RemoteMemory], request: ReasonRequest
) -> RemoteMemory | None:
    """One memory out of the parents': descriptions are merged here, tensors by the replica."""
    if not inputs.memories:
        return None
    memory = merge([m.memory for m in inputs.memories], request.merge or stage.merge)
    parcels = {p.segment_ids: p for m in inputs.memories for p in m.parcels}
    adapters = {one.info.digest: one for m in inputs.memories for one in m.adapters}
    return RemoteMemory(memory, tuple(parcels.values()), tuple(adapters.values()))
