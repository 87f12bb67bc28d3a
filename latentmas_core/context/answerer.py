"""Answers questions together with what belongs to them: a conversation goes on, documents are
searched, tools are run.

Knows no engine and no HTTP: whatever reasons is handed in with each question.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple, Protocol

from latentmas_core.context.cited_search import CitedSearch
from latentmas_core.context.config import ContextConfig
from latentmas_core.context.conversations.conversations import Conversations, OpenTurn
from latentmas_core.context.deadline import Deadline
from latentmas_core.context.documents.document import Document
from latentmas_core.context.documents.fetching import Fetcher
from latentmas_core.context.documents.gathering import gather_documents
from latentmas_core.context.documents.threads import DocumentThreads
from latentmas_core.context.reading import Reading
from latentmas_core.context.request import AskRequest
from latentmas_core.context.tools import (
    SEARCH_DOCUMENTS,
    ToolLoop,
    ToolRegistry,
    document_search_tool,
)
from latentmas_core.context.tools.messages import messages_of
from latentmas_core.errors import ConfigError, NotFoundError
from latentmas_core.events import AnswerDone, Event
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result

DEFAULT_TENANT = "default"


class Reasoning(Protocol):
    """What answers a question by itself."""

    def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """The events of a run."""
        ...

    def num_agents(self, request: ReasonRequest) -> int:
        """How many agents it will run. Raises what is wrong with its pipeline."""
        ...

    async def reading(self) -> Reading:
        """How its model reads."""
        ...


class _Prepared(NamedTuple):
    """A question as agents are asked it, what its answer will rest on, and the documents that came
    with it."""

    asked: ReasonRequest
    search: CitedSearch | None
    turn: OpenTurn | None
    given: tuple[Document, ...]


class Answerer:
    """Serves any number of questions at the same time; it holds nothing of them between.

    ``timeout_s`` of a request is for all of it: its documents, its turn, all rounds. Without
    ``conversations`` none are kept.
    """

    def __init__(
        self,
        config: ContextConfig,
        tools: ToolRegistry,
        conversations: Conversations | None = None,
    ) -> None:
        self._config = config
        self._tools = tools
        self._conversations = conversations
        self._threads = DocumentThreads()
        self._fetcher = Fetcher(config.documents.fetching, threads=self._threads)

    def check(self, request: AskRequest) -> None:
        """Raise NotFoundError for a tool that does not exist here, ConfigError for the one that
        searches documents where there are none, and for a conversation where none are kept."""
        names = () if isinstance(request.enable_tools, bool) else request.enable_tools
        for name in names:
            if name not in (SEARCH_DOCUMENTS, *self._tools.names):
                raise NotFoundError(
                    f"enable_tools has {name!r}, which does not exist here. Known: "
                    f"{', '.join(self._tools.names)}.",
                    param="enable_tools",
                )
            has_documents = request.documents or request.conversation_id is not None
            if name == SEARCH_DOCUMENTS and not has_documents:
                raise ConfigError(
                    f"enable_tools has {name!r}, and there are no documents to search. Give some, "
                    "or leave it out.",
                    param="enable_tools",
                )
        if request.conversation_id is not None and self._conversations is None:
            raise ConfigError(
                f"conversation_id is {request.conversation_id!r}; no conversations are kept here. "
                "Leave it out, or configure conversations.",
                param="conversation_id",
            )

    def run(
        self, reasoning: Reasoning, request: AskRequest, *, tenant: str = DEFAULT_TENANT
    ) -> AsyncGenerator[Event, None]:
        """The events of the run, or of all its rounds where tools are called; the result says what
        it rests on. A turn of a conversation is stored before it is said to be done, or not at all.

        Raises DocumentError for a document that cannot be had or read, ConflictError for a
        conversation that is busy, StoreError where none can be read, and what ``check`` and
        ``reasoning`` raise.
        """
        if not request.has_context:
            return reasoning.stream(request.as_reason())
        self.check(request)
        num_agents = reasoning.num_agents(request.as_reason())
        return self._run(reasoning, request, num_agents, tenant)

    async def _run(
        self, reasoning: Reasoning, request: AskRequest, num_agents: int, tenant: str
    ) -> AsyncGenerator[Event, None]:
        deadline = Deadline(request.timeout_s)
        async with AsyncExitStack() as stack:
            async with deadline.kept():
                asked, search, turn, given = await self._prepared(
                    stack, reasoning, request, num_agents, tenant
                )
            asked = asked.model_copy(update={"timeout_s": deadline.remaining_s()})
            tools = self._tools_for(request, search)
            loop = ToolLoop(tools, limits=self._config.tools)
            events = await stack.enter_async_context(
                aclosing(loop.run(reasoning.stream, asked, tools.names))
            )
            async for event in events:
                if isinstance(event, AnswerDone):
                    event = AnswerDone(await _finished(event.result, search, turn, given))
                yield event

    async def _prepared(
        self,
        stack: AsyncExitStack,
        reasoning: Reasoning,
        request: AskRequest,
        num_agents: int,
        tenant: str,
    ) -> _Prepared:
        """What the agents are asked. The turn, if it is one, ends with ``stack``."""
        asked, turn, search = request.as_reason(), None, None
        if request.conversation_id is not None:
            turn = await self._open_turn(stack, reasoning, request, num_agents, tenant)
            told = {"history": turn.history, "system_prompt": turn.system_prompt}
            asked = asked.model_copy(update=told)
        config = self._config.documents
        kept = turn.documents if turn else ()
        given = await gather_documents(
            request.documents,
            self._fetcher,
            max_chars=config.max_chars,
            first_number=len(kept) + 1,
        )
        new_names = {document.name for document in given}
        documents = (*(one for one in kept if one.name not in new_names), *given)
        if documents:
            reading = await reasoning.reading()
            search = await self._threads.run(CitedSearch, documents, reading, config)
            room = reading.max_shown_tokens(num_agents) // (1 if turn is None else 2)
            asked = await self._with_passages(search, asked, room)
        return _Prepared(asked, search, turn, given)

    async def _with_passages(
        self, search: CitedSearch, asked: ReasonRequest, max_tokens: int
    ) -> ReasonRequest:
        passages = await self._threads.run(
            search.preamble_to, asked.question, max_tokens=max_tokens
        )
        preamble = f"{passages}{asked.preamble or ''}"
        return asked.model_copy(update={"preamble": preamble or None})

    async def _open_turn(
        self,
        stack: AsyncExitStack,
        reasoning: Reasoning,
        request: AskRequest,
        num_agents: int,
        tenant: str,
    ) -> OpenTurn:
        """Its history takes half of the room at most; the other half is for passages."""
        assert self._conversations is not None, "check lets no conversation through without a store"
        reading = await reasoning.reading()
        return await stack.enter_async_context(
            self._conversations.turn(
                tenant,
                request.conversation_id,
                request.question,
                system_prompt=request.system_prompt,
                max_history_tokens=reading.max_shown_tokens(num_agents) // 2,
                count_tokens=reading.num_tokens,
            )
        )

    def _tools_for(self, request: AskRequest, search: CitedSearch | None) -> ToolRegistry:
        """Those that this request enables."""
        asked = request.enable_tools
        if asked is False:
            return ToolRegistry()
        finder = () if search is None else (document_search_tool(search.find),)
        return ToolRegistry(
            tool for tool in (*self._tools, *finder) if asked is True or tool.name in asked
        )


async def _finished(
    result: Result,
    search: CitedSearch | None,
    turn: OpenTurn | None,
    documents: Sequence[Document],
) -> Result:
    """The result with what it rests on, stored where it is a turn, with its ``documents``."""
    citations = () if search is None else search.citations
    if turn is None:
        return result.model_copy(update={"citations": citations})
    result = result.model_copy(
        update={"citations": citations, "conversation_id": turn.conversation_id}
    )
    await turn.finish(
        result,
        messages=messages_of(result.tool_calls),
        documents=documents,
        citations=[citation.model_dump(mode="json") for citation in citations],
    )
    return result
