"""OpenAI's calls: chat completions and models. Routes only."""

from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from deployments.api.errors import ErrorBody
from deployments.api.openai.completions import completion_of
from deployments.api.openai.models import ChatModels, LoadedAdapters
from deployments.api.openai.schema import ChatBody, ChatCompletion, Model, ModelList
from deployments.api.openai.streaming import begun, chunk_messages
from deployments.api.openai.to_request import in_chat_fields, read_body
from deployments.api.streaming import HEADERS, MEDIA_TYPE
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result


class ChatReasoner(Protocol):
    """What the routes need of the reasoner."""

    @property
    def adapters(self) -> LoadedAdapters: ...
    async def check(self, request: ReasonRequest) -> None: ...
    async def reason(self, request: ReasonRequest) -> Result: ...
    def stream(self, request: ReasonRequest) -> Any: ...


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in (
        (400, "wrong or unsupported fields; a context that is too long"),
        (404, "an unknown model or adapter"),
        (503, "overloaded, or a replica was lost"),
    )
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer; with `stream` in chunks, ended by `data: [DONE]`",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


def add_chat_routes(app: FastAPI, reasoner: ChatReasoner, models: ChatModels) -> None:
    """Let ``app`` answer OpenAI's clients."""

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAM | _ERRORS)
    async def chat_completions(body: ChatBody) -> Any:
        """Chat with a pipeline, an adapter or the base model, as OpenAI's API does."""
        target = await models.find(body.model, reasoner.adapters)
        asked = read_body(body, target)
        with in_chat_fields():
            await reasoner.check(asked.request)
            if not body.stream:
                completion = completion_of(await reasoner.reason(asked.request), asked)
                return JSONResponse(completion.model_dump(mode="json", by_alias=True))
        events = await begun(reasoner.stream(asked.request))
        messages = chunk_messages(events, asked)
        return StreamingResponse(messages, media_type=MEDIA_TYPE, headers=HEADERS)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """What ``model`` may name."""
        return ModelList(data=await models.listing(reasoner.adapters))

    @app.get("/v1/models/{model:path}", responses={404: _ERRORS[404]})
    async def get_model(model: str) -> Model:
        """One of them."""
        return await models.get(model, reasoner.adapters)
