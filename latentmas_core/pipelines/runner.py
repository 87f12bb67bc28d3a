"""The protocol between the executor, which walks a plan, and whoever runs its stages.

``LocalAgentRunner`` calls an engine in this process, ``ServeAgentRunner`` calls deployment handles;
the executor cannot tell them apart. A memory reference is owned by whoever received it from
``think`` and goes back through ``release``, exactly once, on every way out.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from latentmas_core.events import Event
from latentmas_core.pipelines.plan import Stage
from latentmas_core.request import ReasonRequest

MemoryRef = TypeVar("MemoryRef")


@dataclass(frozen=True)
class Said:
    """Text that an agent hands over in place of latent memory."""

    agent: str
    text: str


@dataclass(frozen=True)
class StageInputs(Generic[MemoryRef]):
    """What a stage reads: its parents' memories, to be merged in this order, and their words."""

    memories: tuple[MemoryRef, ...] = ()
    transcript: tuple[Said, ...] = ()


@dataclass(frozen=True)
class StageDone(Generic[MemoryRef]):
    """The last item of a stage: what it hands over.

    ``said`` are the texts its agents wrote, in order; ``finish_reason`` is the last agent's. Where
    stages run in other processes, ``num_bytes_read`` of memory were fetched there, ``num_bytes``
    put where others can fetch them, and ``replica`` names the process.
    """

    memory: MemoryRef | None
    said: tuple[Said, ...] = ()
    num_bytes: int = 0
    finish_reason: str = "stop"
    num_bytes_read: int = 0
    replica: str | None = None


class AgentRunner(Protocol[MemoryRef]):
    """Runs stages. Cancelling the iteration ends the stage and frees what it holds.

    Raises LostError where another attempt may succeed, MemoryLostError where those who made the
    memories must run again first. ``request.timeout_s`` is the time that is left for the stage.
    """

    def think(
        self, stage: Stage, inputs: StageInputs[MemoryRef], request: ReasonRequest
    ) -> AsyncGenerator[Event | StageDone[MemoryRef], None]:
        """Run a stage that does not hold the speaker; the last item is its ``StageDone``."""
        ...

    def speak(
        self, stage: Stage, inputs: StageInputs[MemoryRef], request: ReasonRequest
    ) -> AsyncGenerator[Event | StageDone[MemoryRef], None]:
        """Run the stage that ends with the speaker: answer deltas, then a ``StageDone``."""
        ...

    async def release(self, memory: MemoryRef) -> None:
        """Give a memory back; the caller must not use it again."""
        ...
