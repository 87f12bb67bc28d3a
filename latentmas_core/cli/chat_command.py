"""``latentmas chat``: questions and answers until one has enough, or one of them with --prompt."""

import sys
from contextlib import suppress

import typer

from latentmas_core.cli.ask_command import ask_once, talking
from latentmas_core.cli.flags import AskFlags, with_flags
from latentmas_core.cli.output import Output
from latentmas_core.cli.slash import SlashCommands
from latentmas_core.cli.talk import Talk
from latentmas_core.errors import LatentMASError

PROMPT = "> "


@with_flags
def chat(*, flags: AskFlags) -> None:
    """Talk with the agents; /help lists what else can be said.

    Ctrl-C ends an answer; at the prompt it leaves, as Ctrl-D does. Exit status as of ask; where
    standard input is no terminal each of its lines is a question, and one that fails makes it 1.
    """
    flags.check()
    question = flags.question()
    if question is not None:
        ask_once(question, flags)
        return
    if flags.output_json:
        raise typer.BadParameter(
            "one result is printed, so it needs --prompt.", param_hint="--output-json"
        )
    output = Output()
    with talking(flags, output) as talk:
        session = ChatSession(talk, output)
        session.run()
    if session.has_failed:
        raise typer.Exit(1)


class ChatSession:
    """``has_failed``: a question of a script was not answered; people see that for themselves."""

    def __init__(self, talk: Talk, output: Output) -> None:
        self._talk = talk
        self._output = output
        self._commands = SlashCommands(talk, output)
        self._is_interactive = sys.stdin.isatty()
        self.has_failed = False

    def run(self) -> None:
        """Until the end of the input or /exit. Raises KeyboardInterrupt at the prompt only."""
        if self._is_interactive:
            with suppress(ImportError):  # Windows has none, and its console edits lines itself
                import readline  # noqa: F401 - input() edits lines with it once it is imported
            self._output.tell("Ask anything; /help lists commands, Ctrl-D leaves.", style="dim")
        while not self._commands.is_over:
            try:
                line = input(PROMPT if self._is_interactive else "")
            except EOFError:
                break
            except UnicodeDecodeError:
                self._output.tell("error: the input is no text in UTF-8.", style="red")
                self.has_failed = True
                break
            self._take(line.strip())

    def _take(self, line: str) -> None:
        if not line:
            return
        try:
            if line.startswith("/"):
                self._commands.run(line)
            else:
                self._output.show_run(self._talk.ask(line))
        except LatentMASError as error:
            self._output.tell(f"error: {error.message}", style="red")
            self.has_failed = not self._is_interactive
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            self._output.tell("The answer was given up; the conversation is as it was before.")
