"""The flags that ``ask`` and ``chat`` share, declared once, and what contradicts itself in them."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints
from urllib.parse import urlsplit

import httpx
import typer

from latentmas_core.cli.backend import Backend
from latentmas_core.cli.local import LocalBackend, has_separator
from latentmas_core.cli.rag import ReadDocuments, link_to, read_json, read_path
from latentmas_core.cli.remote import RemoteBackend
from latentmas_core.config import MAX_LATENT_STEPS
from latentmas_core.context.conversations.names import check_id
from latentmas_core.errors import ConfigError
from latentmas_core.request import Mode

KEY_VARIABLE = "LATENTMAS_API_KEY"
STANDARD_INPUT = "-"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="In this process: a folder or a model of the hub; the embedded one if left out. With "
        "--endpoint: one of its /v1/models.",
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="Ask this service instead of this process."),
]
Key = Annotated[
    str | None,
    typer.Option("--api-key", metavar="KEY", help=f"Of the service. Better: set {KEY_VARIABLE}."),
]


@dataclass(frozen=True)
class AskFlags:
    """What the command line says; None and False: nothing."""

    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="Ask this and end; - reads it from stdin."),
    ] = None
    model: Model = None
    endpoint: Endpoint = None
    api_key: Key = None
    output_json: Annotated[
        bool, typer.Option("--output-json", help="Print the whole result, and only that, as JSON.")
    ] = False
    system_prompt: Annotated[
        str | None,
        typer.Option("--system-prompt", metavar="TEXT", help="In front of every agent's prompt."),
    ] = None
    pipeline: Annotated[
        str | None,
        typer.Option("--pipeline", metavar="NAME", help="Such as hierarchical, parallel or chat."),
    ] = None
    mode: Annotated[
        Mode | None, typer.Option("--mode", help="What agents exchange; latent if left out.")
    ] = None
    latent_steps: Annotated[
        int | None,
        typer.Option("--latent-steps", min=0, max=MAX_LATENT_STEPS, help="Of every thinker."),
    ] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, max=2.0, help="0 is greedy.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Of every text that is written.")
    ] = None
    lora_adapter: Annotated[
        str | None,
        typer.Option(
            "--lora-adapter",
            metavar="NAME",
            help="For all agents of the pipeline. In this process: a name of the registry, a "
            "folder or owner/name; with --endpoint: a loaded one.",
        ),
    ] = None
    rag_docs: Annotated[
        list[Path] | None,
        typer.Option("--rag-docs", metavar="PATH", help="A document or a folder; may be repeated."),
    ] = None
    rag_data_url: Annotated[
        list[str] | None,
        typer.Option(
            "--rag-data-url", metavar="URL", help="A document of the web; may be repeated."
        ),
    ] = None
    rag_docs_json: Annotated[
        str | None,
        typer.Option(
            "--rag-docs-json",
            metavar="JSON",
            help='Texts, {"text", "name"} or {"url"}: one, or a list.',
        ),
    ] = None
    enable_tools: Annotated[bool, typer.Option("--enable-tools", help="Let agents call tools.")] = (
        False
    )
    session_id: Annotated[
        str | None,
        typer.Option(
            "--session-id", metavar="ID", help="Begin or go on with a conversation that is kept."
        ),
    ] = None
    session_path: Annotated[
        Path | None,
        typer.Option(
            "--session-path",
            metavar="FILE",
            help="The database of conversations of this process; the user's own if left out.",
        ),
    ] = None

    def check(self) -> None:
        """Raise BadParameter for flags that cannot be meant together, by their names."""
        check_key(self.endpoint, self.api_key)
        if self.endpoint is not None and self.model is not None and self.pipeline is not None:
            raise bad_flag(
                "--model",
                "of a service it says what runs, and so does --pipeline. Leave one of them out.",
            )
        if self.endpoint is not None and has_separator(self.lora_adapter or ""):
            raise bad_flag(
                "--lora-adapter",
                "with --endpoint it is the name of an adapter that the service has loaded: "
                "latentmas adapters load",
            )
        if self.session_id is not None:
            with _named("--session-id"):
                check_id(self.session_id)
        if self.endpoint is not None and self.session_path is not None:
            raise bad_flag("--session-path", "a service keeps its conversations where it is told.")

    def documents(self) -> ReadDocuments:
        """All that the flags name. BadParameter for what is no document, DocumentError for what
        cannot be read."""
        found = ReadDocuments(())
        for path in self.rag_docs or ():
            found = found.and_then(read_path(path))
        for url in self.rag_data_url or ():
            with _named("--rag-data-url"):
                found = found.and_then(ReadDocuments((link_to(url),)))
        if self.rag_docs_json is not None:
            with _named("--rag-docs-json"):
                found = found.and_then(ReadDocuments(read_json(self.rag_docs_json)))
        return found

    def question(self) -> str | None:
        """What ``--prompt`` says, or standard input where it says so."""
        return None if self.prompt is None else read_question(self.prompt, "--prompt")


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags as options of its own; it gets them as AskFlags, behind its others.

    Typer reads signatures, and a signature of eighteen parameters twice over is what this avoids.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    hints = get_type_hints(AskFlags, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(one.name, kind, default=one.default, annotation=hints[one.name])
        for one in fields(AskFlags)
    ]

    def run(**values: Any) -> None:
        others = {one.name: values.pop(one.name) for one in own}
        command(**others, flags=AskFlags(**values))

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*own, *options)}
    return run


def check_key(endpoint: str | None, api_key: str | None) -> None:
    """Raise BadParameter for a key that is given without a service."""
    if endpoint is None and api_key is not None:
        raise bad_flag("--api-key", "there is no service to show it to. Give --endpoint too.")


def open_backend(
    model: str | None,
    endpoint: str | None,
    api_key: str | None,
    *,
    session_path: Path | None = None,
) -> Backend:
    """A service where ``endpoint`` names one, else this process. BadParameter for no URL."""
    if endpoint is None:
        return LocalBackend(model, session_path=session_path)
    return open_service(endpoint, api_key)


def open_service(endpoint: str, api_key: str | None) -> RemoteBackend:
    """The service at a URL, with the key of the flag or of the environment; BadParameter."""
    try:
        url = urlsplit(endpoint)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise bad_flag("--endpoint", f"{endpoint!r} is no URL such as http://127.0.0.1:8000.")
    key = api_key or os.environ.get(KEY_VARIABLE)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise bad_flag("--api-key", "a key has printable ASCII characters only.")
    try:
        return RemoteBackend(endpoint, api_key=key)
    except httpx.InvalidURL as error:
        raise bad_flag("--endpoint", f"{endpoint!r} is no URL: {error}.") from None


def read_question(text: str, flag: str) -> str:
    """``text``, or standard input for ``-``. BadParameter for nothing, and for what is no text."""
    try:
        question = sys.stdin.read().strip() if text == STANDARD_INPUT else text
        question.encode()
    except UnicodeError:
        raise bad_flag(flag, "the question is no text in UTF-8.") from None
    if not question.strip():
        raise bad_flag(flag, "the question is empty.")
    return question


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """What a flag says is wrong usage of it, not a failure."""
    try:
        yield
    except ConfigError as error:
        raise bad_flag(flag, error.message) from None


def bad_flag(flag: str, problem: str) -> typer.BadParameter:
    """A misuse, told with the flag that it is about."""
    return typer.BadParameter(problem, param_hint=flag)
