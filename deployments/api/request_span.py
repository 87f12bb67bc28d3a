"""The span of one HTTP request: it goes on with the trace that the client names (W3C), and all that
is done for the request lies below it. Attributes are those of OpenTelemetry's conventions for HTTP.
"""

from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, use_span
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.request_log import PROBES, shown
from deployments.logs import current_notes, current_origin
from deployments.tracing import CUT, ERROR_TYPE, OUTCOME, Tracing, attributes_of

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# What is known of a request by its end, in its line in the log as well.
NOTED = ("run_id", "pipeline", "mode", "key_name", "tenant")


class RequestSpan:
    """ASGI middleware, outside of all others; probes have no span."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        answer = _Answer(send)
        with (
            self._tracing.span(
                method,
                parent=_parent(scope),
                kind=SpanKind.SERVER,
                http__request__method=method,
                url__path=shown(scope["path"]),
                url__scheme=scope["scheme"],
            ) as span,
            use_span(span, record_exception=False, set_status_on_exception=False),
        ):
            try:
                await self._app(scope, receive, answer.send)
            finally:
                _describe(span, scope, answer)


class _Answer:
    """What goes out: its status, and whether all of it went."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.is_whole = False

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.is_whole = not message.get("more_body", False)


def _parent(scope: Scope) -> Context | None:
    """None: the current span, where whoever called us has one already, or none."""
    if get_current_span().get_span_context().is_valid:
        return None
    return propagate.extract(Headers(scope=scope))


def _describe(span: Span, scope: Scope, answer: _Answer) -> None:
    route: str | None = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
    noted: dict[str, Any] = {f"latentmas.{name}": current_notes().get(name) for name in NOTED}
    known = {
        "http.route": route,
        "http.response.status_code": answer.status,
        "latentmas.request_id": current_origin().request_id,
    }
    span.set_attributes(attributes_of(known | noted))
    if not answer.is_whole:
        span.set_attribute(OUTCOME, CUT)
    if answer.status is not None and answer.status >= 500:
        span.set_attribute(ERROR_TYPE, str(answer.status))
        span.set_status(StatusCode.ERROR)
