"""What a run looks like while it goes on: a live table on a terminal, else plain lines."""

from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from latentmas_core.cli.board import (
    AgentRow,
    Board,
    describe_agent,
    describe_bytes,
    describe_notice,
)
from latentmas_core.events import AgentFinished, Event, StageFinished

_REFRESHES_PER_S = 8
# Whatever could steer a terminal; new lines and tabs are text.
_CONTROL_CHARS = dict.fromkeys((*range(32), *range(127, 160)), "�") | {
    ord("\n"): "\n",
    ord("\t"): "\t",
}


def harmless(text: str) -> str:
    """Text from models and services, without what would move the cursor or change colours."""
    return text.translate(_CONTROL_CHARS)


class View(Protocol):
    """Shows a run until it is stopped; stopping twice is fine."""

    def note(self, event: Event) -> None: ...
    def stop(self) -> None: ...


class PlainView:
    """A line for everything that has come to an end."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def stop(self) -> None:
        """What was told stays told; what comes later is told too."""

    def note(self, event: Event) -> None:
        match event:
            case AgentFinished(trace=trace):
                self._tell(describe_agent(trace))
            case StageFinished(stage=stage, trace=stage_trace) if stage_trace.bytes_out:
                self._tell(f"{stage}: {describe_bytes(stage_trace.bytes_out)} handed over")
            case _ if (notice := describe_notice(event)) is not None:
                self._tell(notice)
            case _:
                pass


class LiveView:
    """A table of all agents, drawn again in place until it is stopped; its last state stays."""

    def __init__(self, console: Console) -> None:
        self._board = Board()
        self._spinner = Spinner("dots")
        self._is_over = False
        self._live = Live(
            console=console,
            get_renderable=self._drawn,
            refresh_per_second=_REFRESHES_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def stop(self) -> None:
        self._is_over = True  # nothing turns in what stays
        self._live.stop()

    def note(self, event: Event) -> None:
        self._board.note(event)

    def _drawn(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "agent", "", "latent steps", "tokens", "time"):
            is_number = heading in ("latent steps", "tokens", "time")
            table.add_column(heading, justify="right" if is_number else "left")
        for row in list(self._board.rows.values()):
            table.add_row(*self._cells(row))
        lines = [Text(harmless(notice), style="yellow") for notice in self._board.notices]
        if self._board.num_bytes:
            handed = f"{describe_bytes(self._board.num_bytes)} handed over"
            lines.append(Text(handed, style="dim"))
        return Group(table, *lines)

    def _cells(self, row: AgentRow) -> tuple[RenderableType, ...]:
        trace = row.trace
        return (
            self._spinner if row.is_busy and not self._is_over else Text(" "),
            Text(harmless(row.name)),
            Text(row.state, style="bold" if row.is_busy else "dim"),
            Text(str(row.latent_steps or "")),
            Text(str(trace.completion_tokens or "") if trace else ""),
            Text(f"{trace.latency_ms:.0f} ms" if trace else ""),
        )
