"""Groups of one process in place of deployments, for a reasoner without Ray.

What would cross a handle is pickled all the same, and arrays come out read-only.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from deployments.agent_group import AgentGroupServer
from deployments.args import AppArgs
from deployments.group_setup import GroupSetup
from deployments.messages import Parcel, StageCall, StageFailed, StageMade
from deployments.tracing import NO_TRACING, Tracing
from deployments.transport import WireSegments
from latentmas_core.engine.engine import Engine
from latentmas_core.events import Event
from latentmas_core.pipelines.stage_worker import Roster
from tests.deployments.wire import send

OnWire = Callable[[WireSegments], None]


def make_servers(
    args: AppArgs, engines: dict[str, Engine], *, tracing: Tracing = NO_TRACING
) -> dict[str, AgentGroupServer]:
    """One replica per group, by the name of the group."""
    return {
        group.name: AgentGroupServer(
            engines[group.name],
            GroupSetup(args.engine_of(group), Roster(args.agents_of(group), args.latent_steps)),
            tracing=tracing,
        )
        for group in args.groups
    }


class LocalTransport:
    """``stream_stage`` of the transport over servers.

    ``sent`` and ``messages`` keep what crossed: packed segments, and all else.
    """

    def __init__(self) -> None:
        self.sent: list[WireSegments] = []
        self.messages: list[object] = []
        self.before_sending: OnWire | None = None

    async def stream_stage(
        self, server: AgentGroupServer, call: StageCall
    ) -> AsyncGenerator[Event | StageMade | Parcel, None]:
        made: StageMade | None = None
        async with aclosing(server.run_stage(send(call))) as messages:
            async for message in messages:
                if isinstance(message, WireSegments):
                    assert made is not None, "segments came before StageMade"
                    yield Parcel(made.new_segment_ids, self._send(message), made.num_bytes)
                    continue
                received = send(message)
                self.messages.append(received)
                if isinstance(received, StageFailed):
                    raise received.error
                if isinstance(received, StageMade):
                    made = received
                yield received

    def _send(self, wire: WireSegments) -> WireSegments:
        if self.before_sending is not None:
            self.before_sending(wire)
        self.sent.append(send(wire))
        return self.sent[-1]
