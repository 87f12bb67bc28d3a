"""Answers questions together with what belongs to them: documents are searched, tools are run.

Knows no engine and no HTTP: whatever reasons is handed in with each question.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from latentmas_core.context.cited_search import CitedSearch
from latentmas_core.context.config import ContextConfig
from latentmas_core.context.documents.fetching import Fetcher
from latentmas_core.context.documents.gathering import gather_documents
from latentmas_core.context.reading import Reading
from latentmas_core.context.request import AskRequest
from latentmas_core.context.tools import (
    SEARCH_DOCUMENTS,
    ToolLoop,
    ToolRegistry,
    document_search_tool,
)
from latentmas_core.errors import ConfigError
from latentmas_core.events import AnswerDone, Event
from latentmas_core.request import ReasonRequest


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


class Answerer:
    """Serves any number of questions at the same time; it holds nothing between them."""

    def __init__(self, config: ContextConfig, tools: ToolRegistry) -> None:
        self._config = config
        self._tools = tools
        self._fetcher = Fetcher(config.documents.fetching)

    def check(self, request: AskRequest) -> None:
        """Raise NotFoundError for a tool that does not exist here, ConfigError for the one that
        searches documents where there are none."""
        names = () if isinstance(request.enable_tools, bool) else request.enable_tools
        for name in names:
            if name != SEARCH_DOCUMENTS:
                self._tools.get(name)
            elif not request.documents:
                raise ConfigError(
                    f"enable_tools has {name!r}, and there are no documents to search. Give some, "
                    "or leave it out.",
                    param="enable_tools",
                )

    def run(self, reasoning: Reasoning, request: AskRequest) -> AsyncGenerator[Event, None]:
        """The events of the run, or of all its rounds where tools are called; the result says what
        it rests on. Raises DocumentError for a document that cannot be had or read, and what
        ``check`` and ``reasoning`` raise."""
        if not request.has_context:
            return reasoning.stream(request.as_reason())
        self.check(request)
        num_agents = reasoning.num_agents(request.as_reason())
        return self._run(reasoning, request, num_agents)

    async def _run(
        self, reasoning: Reasoning, request: AskRequest, num_agents: int
    ) -> AsyncGenerator[Event, None]:
        search = await self._search(reasoning, request)
        asked = request.as_reason()
        if search is not None:
            asked = await _with_passages(search, asked, num_agents)
        tools = self._tools_for(request, search)
        loop = ToolLoop(tools, limits=self._config.tools)
        async with aclosing(loop.run(reasoning.stream, asked, tools.names)) as events:
            async for event in events:
                if isinstance(event, AnswerDone) and search is not None:
                    cited = {"citations": search.citations}
                    event = AnswerDone(event.result.model_copy(update=cited))
                yield event

    async def _search(self, reasoning: Reasoning, request: AskRequest) -> CitedSearch | None:
        if not request.documents:
            return None
        documents = await gather_documents(request.documents, self._fetcher)
        return await CitedSearch.over(documents, await reasoning.reading(), self._config.documents)

    def _tools_for(self, request: AskRequest, search: CitedSearch | None) -> ToolRegistry:
        """Those that this request enables."""
        asked = request.enable_tools
        if asked is False:
            return ToolRegistry()
        finder = () if search is None else (document_search_tool(search.find),)
        return ToolRegistry(
            tool for tool in (*self._tools, *finder) if asked is True or tool.name in asked
        )


async def _with_passages(
    search: CitedSearch, asked: ReasonRequest, num_agents: int
) -> ReasonRequest:
    passages = await asyncio.to_thread(search.preamble_to, asked.question, num_agents=num_agents)
    preamble = f"{passages}{asked.preamble or ''}"
    return asked.model_copy(update={"preamble": preamble or None})
