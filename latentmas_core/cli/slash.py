"""What can be said in a chat beside questions: ``/help`` and the others."""

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from latentmas_core.cli.backend import known_pipelines
from latentmas_core.cli.output import Output
from latentmas_core.cli.rag import name_of, read_source
from latentmas_core.cli.talk import Talk
from latentmas_core.context.conversations.names import check_id
from latentmas_core.errors import ConfigError
from latentmas_core.request import Mode
from latentmas_core.routing.domains import AUTO

OFF = "off"
DEFAULT_FILE = "conversation.json"


class SlashCommand(NamedTuple):
    """``run`` gets what stands behind the command, without blanks around it."""

    usage: str
    about: str
    run: Callable[[str], None]


class SlashCommands:
    """``is_over``: the chat is to end."""

    def __init__(self, talk: Talk, output: Output) -> None:
        self._talk = talk
        self._output = output
        self._saved: set[Path] = set()
        self.is_over = False
        self._commands: Mapping[str, SlashCommand] = {
            "/help": SlashCommand("/help", "this list", self._help),
            "/clear": SlashCommand("/clear", "begin a new conversation", self._clear),
            "/save": SlashCommand(
                "/save [FILE]", f"write down what was said, into {DEFAULT_FILE}", self._save
            ),
            "/pipeline": SlashCommand(
                "/pipeline [NAME]", "choose who answers, or list the choices", self._pipeline
            ),
            "/mode": SlashCommand("/mode [NAME]", f"one of {', '.join(Mode)}", self._mode),
            "/lora": SlashCommand(
                "/lora [NAME|off]", "let all agents use an adapter, or none", self._lora
            ),
            "/rag": SlashCommand(
                "/rag [PATH|URL|off]", "let agents read a document, or none", self._rag
            ),
            "/sessions": SlashCommand(
                "/sessions [ID]",
                "list conversations, or go on with one",
                self._sessions,
            ),
            "/exit": SlashCommand("/exit", "leave, as Ctrl-D does", self._exit),
        }

    def run(self, line: str) -> None:
        """Raises LatentMASError for what is wrong with a command, unknown ones among it."""
        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise self._unknown(name)
        command.run(rest.strip())

    def _unknown(self, name: str) -> ConfigError:
        near = get_close_matches(name, self._commands, n=1)
        hint = f"Did you mean {near[0]}?" if near else "/help lists what there is."
        return ConfigError(f"{name} is no command. {hint}")

    def _help(self, rest: str) -> None:
        width = max(len(command.usage) for command in self._commands.values())
        for command in self._commands.values():
            self._output.tell(f"  {command.usage:<{width}}  {command.about}")

    def _clear(self, rest: str) -> None:
        conversation_id = self._talk.begin_anew()
        kept = f", kept as {conversation_id}" if conversation_id else ""
        self._output.tell(f"A new conversation begins{kept}.")

    def _save(self, rest: str) -> None:
        path = Path(rest or DEFAULT_FILE).expanduser().absolute()
        messages = [one.model_dump(exclude_defaults=True) for one in self._talk.messages()]
        try:
            # What this chat did not write itself is not its to overwrite.
            with path.open("w" if path in self._saved else "x", encoding="utf-8") as file:
                json.dump(messages, file, indent=2, ensure_ascii=False)
        except FileExistsError:
            raise ConfigError(f"{path} exists already. Choose another name.") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
        self._saved.add(path)
        self._output.tell(f"{len(messages)} messages written to {path}")

    def _pipeline(self, rest: str) -> None:
        if rest:
            self._talk.choose_pipeline(rest)
            self._output.tell(f"From now on {rest} answers.")
            return
        chosen = self._talk.settings.pipeline
        for one in known_pipelines(self._talk.backend):
            is_used = one.name == chosen or (chosen is None and one.is_default)
            about = one.description if one.name == AUTO else ", ".join(one.agents)
            self._output.tell(f"{'*' if is_used else ' '} {one.name}: {about}")

    def _mode(self, rest: str) -> None:
        if not rest:
            self._output.tell(f"The mode is {self._talk.settings.mode or Mode.LATENT}.")
            return
        if rest not in list(Mode):
            raise ConfigError(f"mode {rest!r} does not exist; there are {', '.join(Mode)}.")
        self._talk.choose_mode(Mode(rest))
        self._output.tell(f"The mode is {rest} from now on.")

    def _lora(self, rest: str) -> None:
        if rest:
            self._talk.choose_adapter(None if rest == OFF else rest)
        used = self._talk.settings.adapter
        self._output.tell(f"All agents use {used}." if used else "No adapter is chosen.")

    def _rag(self, rest: str) -> None:
        if rest == OFF:
            self._talk.drop_documents()
            if self._talk.settings.conversation_id is not None:
                self._output.tell("What this conversation was given stays with it: /clear")
        elif rest:
            found = read_source(rest)
            if found.notice:
                self._output.tell(found.notice)
            self._talk.add_documents(found.documents)
        names = [name_of(document) for document in self._talk.settings.documents]
        self._output.tell(f"Agents read {', '.join(names)}." if names else "No document is read.")

    def _sessions(self, rest: str) -> None:
        if rest:
            num_messages = len(self._talk.backend.messages(check_id(rest)))
            self._talk.go_on_with(rest)
            self._output.tell(f"Going on with {rest}: {num_messages} messages so far.")
            return
        chosen = self._talk.settings.conversation_id
        kept = self._talk.backend.conversations()
        for one in kept:
            mark = "*" if one.id == chosen else " "
            self._output.tell(f"{mark} {one.id}: {one.title or ''} ({one.num_turns} turns)")
        if not kept:
            self._output.tell("No conversation is kept. Begin one: /sessions ID")

    def _exit(self, rest: str) -> None:
        self.is_over = True
