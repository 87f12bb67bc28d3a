"""``latentmas ask``: one question, one answer."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import typer

from latentmas_core.cli.flags import AskFlags, open_backend, read_question, with_flags
from latentmas_core.cli.output import Output
from latentmas_core.cli.talk import Talk, begin_talk
from latentmas_core.errors import LatentMASError

Question = Annotated[
    str | None, typer.Argument(metavar="QUESTION", help="- reads it from standard input.")
]


@with_flags
def ask(question: Question = None, *, flags: AskFlags) -> None:
    """Ask one question and print the answer.

    Exit status 0: answered. 1: it failed, with the reason on standard error. 2: wrong usage.
    130: Ctrl-C.
    """
    if (question is None) == (flags.prompt is None):
        problem = "is missing" if question is None else "is given twice, also as --prompt"
        raise typer.BadParameter(f"the question {problem}.", param_hint="QUESTION")
    flags.check()
    text = flags.question() if question is None else read_question(question, "QUESTION")
    assert text is not None, "neither a question nor --prompt"
    ask_once(text, flags)


def ask_once(question: str, flags: AskFlags) -> None:
    """Print the answer to one question, or its whole result as JSON."""
    output = Output(as_json=flags.output_json)
    with talking(flags, output) as talk:
        output.show_run(talk.ask(question))


@contextmanager
def talking(flags: AskFlags, output: Output) -> Iterator[Talk]:
    """A talk as the flags say; an error inside ends the program with its message and status 1."""
    backend = open_backend(
        flags.model, flags.endpoint, flags.api_key, session_path=flags.session_path
    )
    with closing(backend), failures_told(output):
        found = flags.documents()  # what cannot be read is found out before a model is loaded
        if found.notice:
            output.tell(found.notice)
        with output.busy(f"reaching {flags.endpoint} ..." if flags.endpoint else "loading ..."):
            talk = begin_talk(backend, flags, found.documents)
        if talk.settings.conversation_id != flags.session_id:
            output.tell(f"The conversation is kept as {talk.settings.conversation_id}.")
        yield talk


@contextmanager
def failures_told(output: Output) -> Iterator[None]:
    """What fails inside is said in one line, and the command ends with status 1."""
    try:
        yield
    except LatentMASError as error:
        output.tell(f"error: {error.message}", style="red")
        raise typer.Exit(1) from None
