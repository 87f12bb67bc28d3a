"""OpenAI's calls: chat completions and models. Routes only."""

from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from deployments.api.openai.completions import completion_of
from deployments.api.openai.models import ChatModels, LoadedAdapters
from deployments.api.openai.schema import ChatBody, ChatCompletion, Model, ModelList
from deployments.api.openai.streaming import begun, chunk_messages
from deployments.api.openai.to_request import in_chat_fields, read_body
from deployments.api.streaming import ERROR_SCHEMA, HEADERS, MEDIA_TYPE, event_schema
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result


class ChatReasoner(Protocol):
    """What the routes need of the reasoner."""

    @property
    def adapters(self) -> LoadedAdapters: ...
    async def check(self, request: ReasonRequest) -> None: ...
    async def reason(self, request: ReasonRequest) -> Result: ...
    def stream(self, request: ReasonRequest) -> Any: ...


_CHUNK = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion.chunk"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}, "maxItems": 1},
    },
    "required": ["id", "object", "created", "model", "choices"],
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer; with `stream` in chunks, ended by `data: [DONE]`",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "anyOf": [
                        event_schema({"anyOf": [_CHUNK, ERROR_SCHEMA]}),
                        {"type": "object", "properties": {"data": {"const": "[DONE]"}}},
                    ]
                }
            }
        },
    }
}


def add_chat_routes(app: FastAPI, reasoner: ChatReasoner, models: ChatModels) -> None:
    """Let ``app`` answer OpenAI's clients."""

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAM)
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

    @app.get("/v1/models/{model:path}")
    async def get_model(model: str) -> Model:
        """One of them."""
        return await models.get(model, reasoner.adapters)
