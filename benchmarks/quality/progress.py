"""How far a run is: a bar on a terminal, lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.program import say


@contextmanager
def shown_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Tell what this gives how many answers there are, how many there will be, what is next."""
    if not sys.stderr.isatty():
        yield _say_progress
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=None)
        yield lambda num_done, num_all, title: progress.update(
            bar, completed=num_done, total=num_all, description=title
        )


def _say_progress(num_done: int, num_all: int, title: str) -> None:
    say(f"{num_done} of {num_all} answers{f'; {title}' if title else ''}")
