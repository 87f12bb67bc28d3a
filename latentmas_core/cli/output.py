"""Output: answers go to standard output, all else to standard error."""

import json
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentmas_core.cli.board import describe_result
from latentmas_core.cli.view import LiveView, PlainView, View, harmless
from latentmas_core.events import AnswerDelta, AnswerDone, Event
from latentmas_core.result import Result


class Output:
    """``as_json``: standard output gets one JSON value, and no answer as it comes."""

    def __init__(self, *, as_json: bool = False) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # better a wrong character than no answer
        self._as_json = as_json
        self._is_terminal = sys.stdout.isatty()
        self._is_one_place = _is_one_place()
        self._console = Console(stderr=True, highlight=False)
        self._is_in_a_line = False

    @property
    def is_live(self) -> bool:
        """Whether somebody watches both: what comes and goes would only fill a file."""
        return self._is_terminal and self._console.is_terminal

    def show_run(self, events: Generator[Event, None, None]) -> Result:
        """Show a run as it goes on, its answer as it comes, then what it cites. Leaving ends it."""
        result: Result | None = None
        view: View = LiveView(self._console) if self.is_live else PlainView(self.tell)
        try:
            with closing(events):
                for event in events:
                    view.note(event)
                    if isinstance(event, AnswerDelta) and not self._as_json:
                        if isinstance(view, LiveView):
                            view.stop()
                            view = PlainView(self.tell)  # what comes later stands below
                        self.answer(event.text)
                    elif isinstance(event, AnswerDone):
                        result = event.result
        finally:
            view.stop()
            self._end_line()
        assert result is not None, "a run ended without AnswerDone"
        if self._as_json:
            self.json(result.model_dump(mode="json", by_alias=True))
            return result
        for number, citation in enumerate(result.citations, start=1):
            self.tell(f"[{number}] {citation.source}")
        self.tell(describe_result(result), style="dim")
        return result

    def answer(self, text: str) -> None:
        self._write(harmless(text) if self._is_terminal else text)
        self._is_in_a_line = not text.endswith("\n")

    def json(self, value: Any) -> None:
        self._write(json.dumps(value, indent=2) + "\n")

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns for people; for programs a line per row, with tabs and without headings."""
        if not self._is_terminal:
            self._write("".join("\t".join(row) + "\n" for row in rows))
            return
        table = Table(*headings, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(Text(harmless(cell)) for cell in row))
        Console(highlight=False).print(table)

    def tell(self, line: str, *, style: str = "") -> None:
        """A line on standard error."""
        if self._is_one_place:  # elsewhere the answer stays as it is
            self._end_line()
        self._console.print(Text(harmless(line), style=style), soft_wrap=True)

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Say what is waited for, as long as that takes."""
        if self.is_live:
            return self._console.status(Text(what))
        self.tell(what)
        return nullcontext()

    def _end_line(self) -> None:
        if self._is_in_a_line:
            self._write("\n")
            self._is_in_a_line = False

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _is_one_place() -> bool:
    """Whether both outputs go to one place, such as a terminal."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError):  # one of them is no file
        return False
