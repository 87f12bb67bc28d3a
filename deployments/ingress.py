"""The HTTP face: routes only. What they do is in the reasoner, how they fail in api/errors, who may
call them in api/access."""

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve

from deployments.api.access import PUBLIC_PATHS, Access, install_access
from deployments.api.adapters import AdapterAdmin, add_adapter_routes
from deployments.api.batch import add_batch_route
from deployments.api.catalogue import add_catalogue_routes
from deployments.api.conversations import add_conversation_routes
from deployments.api.errors import (
    ERROR_RESPONSES,
    ErrorKind,
    error_response,
    install_error_handlers,
)
from deployments.api.keys import open_keys
from deployments.api.openai.models import ChatModels
from deployments.api.openai.routes import add_chat_routes
from deployments.api.openapi import ServiceLimits, describe_calls
from deployments.api.request_span import RequestSpan
from deployments.api.runpod import add_runpod_route
from deployments.api.streaming import AS_EVENTS, HEADERS, MEDIA_TYPE, begun, server_sent_events
from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.logs import log_through_serve
from deployments.metrics import RayRecorder
from deployments.playground.routes import add_pages
from deployments.reasoner import Reasoner
from deployments.tracing import NO_TRACING, Tracing, open_tracing
from deployments.transport import GroupHandle, object_store_bytes, rename_request, this_place
from latentmas_core.config import JsonBool
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.request import AskRequest
from latentmas_core.result import Result

NO_LIMITS = ServiceLimits()


class ReasonBody(AskRequest):
    """The body of ``POST /v1/reason``; unknown fields are refused."""

    stream: JsonBool = False
    """Answer with server-sent events, the last of them `answer.done` or `error`."""

    def as_request(self) -> AskRequest:
        fields = {name: getattr(self, name) for name in AskRequest.model_fields}
        return AskRequest.model_construct(**fields)


def build_http_app(
    reasoner: Reasoner,
    admin: AdapterAdmin,
    models: ChatModels,
    access: Access | None = None,
    tracing: Tracing = NO_TRACING,
    *,
    limits: ServiceLimits = NO_LIMITS,
    conversations: Conversations | None = None,
) -> FastAPI:
    """All routes over one reasoner; open to everyone without ``access``. ``limits`` are told, not
    kept: that is the engines' and the keys' part. Without ``conversations`` none are kept."""
    # FastAPI's own pages would load their code from elsewhere.
    app = FastAPI(
        title="LatentMAS on Ray Serve", docs_url=None, redoc_url=None, responses=ERROR_RESPONSES
    )
    install_error_handlers(app)
    describe_calls(app, PUBLIC_PATHS, limits)
    access = access or Access()
    install_access(app, access)
    if tracing.is_on:
        app.add_middleware(RequestSpan, tracing=tracing)
    add_adapter_routes(app, reasoner.adapters, admin)
    add_chat_routes(app, reasoner, models)
    add_catalogue_routes(app, reasoner)
    add_batch_route(app, reasoner, access.limits)
    add_runpod_route(app, reasoner)
    if conversations is not None:
        add_conversation_routes(app, conversations)
    add_pages(app)
    _add_reasoning(app, reasoner)
    _add_status(app, reasoner, access)
    return app


def _add_reasoning(app: FastAPI, reasoner: Reasoner) -> None:
    @app.post("/v1/reason", response_model=Result, responses={200: AS_EVENTS})
    async def reason(body: ReasonBody) -> Any:
        """Ask a question; with ``stream`` the answer comes as server-sent events."""
        request = body.as_request()
        await reasoner.check(request)
        if body.stream:
            events = reasoner.stream(request)
            if request.has_context:  # what cannot be had of it is no event, but a status
                events = await begun(events)
            messages = server_sent_events(events)
            return StreamingResponse(messages, media_type=MEDIA_TYPE, headers=HEADERS)
        return await reasoner.reason(request)


def _add_status(app: FastAPI, reasoner: Reasoner, access: Access) -> None:
    @app.get("/v1/stats")
    async def stats() -> dict[str, Any]:
        """What each replica of each group holds and has done, what is on its way between, and how
        many requests this ingress has now, this one among them."""
        return {
            "groups": await reasoner.stats(),
            "transfer": reasoner.transfer(),
            "requests": {"num_ongoing": access.limits.num_ongoing},
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Live: the ingress answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=None)
    async def readyz() -> dict[str, str] | JSONResponse:
        """Ready: every group answers."""
        missing = await reasoner.groups_not_ready()
        if not missing:
            return {"status": "ok"}
        kind = ErrorKind(503, "server_error", "not_ready")
        return error_response(
            kind, f"groups that do not answer: {', '.join(missing)}. Retry later."
        )


@serve.deployment
@serve.ingress()
class Ingress:
    """One application's HTTP ingress; it holds handles, never memories or weights."""

    def __init__(self, args: AppArgs, handles: Mapping[str, GroupHandle]) -> None:
        log_through_serve()
        access = Access(
            args.access,
            open_keys(args.access, os.environ),
            is_behind_serve=True,
            renamed=rename_request,
        )
        admin = AdapterAdmin(args.adapters, args.engine.model_name)
        max_bytes = args.max_transfer_bytes or max(1, object_store_bytes() // 2)
        self._tracing = open_tracing(os.environ, instance=this_place().replica)
        budget = TransferBudget(max_bytes)
        kept = args.conversations
        self._conversations = None if kept is None else Conversations(kept)
        reasoner = Reasoner(
            args, handles, budget, RayRecorder(), self._tracing, self._conversations
        )
        models = ChatModels.of(args)
        self._app = build_http_app(
            reasoner,
            admin,
            models,
            access,
            self._tracing,
            limits=limits_of(args),
            conversations=self._conversations,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def __del__(self) -> None:
        if self._conversations is not None:
            await self._conversations.close()
        await self._tracing.close()


def limits_of(args: AppArgs) -> ServiceLimits:
    """A group may allow fewer steps, and a key of its own limits fewer tokens: they say so then."""
    limits = args.access.limits
    steps = max(args.engine_of(group).max_latent_steps for group in args.groups)
    if limits.max_latent_steps is not None:
        steps = min(steps, limits.max_latent_steps)
    return ServiceLimits(limits.max_tokens, steps)
