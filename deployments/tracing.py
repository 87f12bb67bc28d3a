"""OpenTelemetry: a tracer out of the standard OTEL_* variables, and spans that end however their
work does. Which spans there are is in spans.py and api/request_span.py.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    OTEL_SDK_DISABLED,
)
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

logger = logging.getLogger(__name__)

SERVICE = "latentmas"
OTEL_TRACES_EXPORTER = "OTEL_TRACES_EXPORTER"
EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points
FLUSH_TIMEOUT_S = 5.0

OUTCOME = "latentmas.outcome"
CUT, FAILED = "cut", "failed"  # as the lines of stages in the log have it
ERROR_TYPE = "error.type"

TraceContext = Mapping[str, str]
"""A span as plain data: the headers ``traceparent`` and ``tracestate`` of W3C."""

_W3C = TraceContextTextMapPropagator()


class Tracing:
    """Makes the spans of one process; without a provider there are none, at no cost."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE) if provider else None

    @property
    def is_on(self) -> bool:
        return self._tracer is not None

    def begin(
        self,
        name: str,
        *,
        parent: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        began_at_ns: int | None = None,
        **attributes: Any,
    ) -> Span:
        """A span that the caller ends; below the current one where no parent is named.

        ``attributes``: a double underscore stands for a dot; those that are None are left out.
        """
        if self._tracer is None:
            return INVALID_SPAN
        return self._tracer.start_span(
            name,
            parent,
            kind,
            attributes_of(attributes),
            start_time=began_at_ns,
            record_exception=False,
            set_status_on_exception=False,
        )

    @contextmanager
    def span(self, name: str, **options: Any) -> Iterator[Span]:
        """The same, ended with the block, however that ends."""
        span = self.begin(name, **options)
        try:
            yield span
        except BaseException as error:
            note_end(span, error)
            raise
        finally:
            span.end()

    async def close(self) -> None:
        """Export what has ended, as far as that can be done in a moment."""
        if self._provider is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_TIMEOUT_S):
                    await asyncio.to_thread(self._provider.force_flush)


NO_TRACING = Tracing()


def note_end(span: Span, error: BaseException) -> None:
    """How its work ended, where not well. Of an error the class is kept, never the words: those may
    be a client's."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        span.set_attribute(OUTCOME, CUT)
        return
    span.set_attributes({OUTCOME: FAILED, ERROR_TYPE: type(error).__name__})
    span.set_status(StatusCode.ERROR)


def attributes_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes out of keywords: ``http__route`` is http.route; what is None is none."""
    return {name.replace("__", "."): value for name, value in values.items() if value is not None}


def below(span: Span) -> Context:
    """For ``parent``: whatever else is current where the child begins does not matter."""
    return set_span_in_context(span, Context())


def as_trace_context(span: Span) -> TraceContext:
    """For another process, which continues it with ``continued``."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, below(span))
    return carrier


def continued(context: TraceContext) -> Context:
    """The trace that a message came with, so that spans join it."""
    return _W3C.extract(context)


def current_trace_id() -> str | None:
    """That of the request that the current task serves, if it is traced."""
    return trace_id_of(trace.get_current_span())


def trace_id_of(span: Span) -> str | None:
    """As logs and backends write it; None of a span that is none."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def open_tracing(environ: Mapping[str, str], *, instance: str | None = None) -> Tracing:
    """What the environment asks for; ``instance`` names this process among those of the service.

    A provider that the process has already, such as that of Serve's own tracing, is used as it is.
    What cannot be done is told in the log: nobody goes without answers for want of traces.
    """
    if environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true":
        return NO_TRACING
    known = trace.get_tracer_provider()
    if isinstance(known, TracerProvider):
        return Tracing(known)
    exporters = [one for name in exporter_names(environ) if (one := _load_exporter(name))]
    if not exporters:
        return NO_TRACING
    provider = TracerProvider(resource=_resource(instance), shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def exporter_names(environ: Mapping[str, str]) -> list[str]:
    """Entry points of the exporters: those of ``OTEL_TRACES_EXPORTER``; without it OTLP, where an
    endpoint is named."""
    endpoints = (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT)
    default = "otlp" if any(environ.get(name) for name in endpoints) else ""
    asked = environ.get(OTEL_TRACES_EXPORTER, "").strip() or default
    names = [name for one in asked.split(",") if (name := one.strip()) not in ("", "none")]
    return [_otlp(environ) if name == "otlp" else name for name in names]


def _otlp(environ: Mapping[str, str]) -> str:
    protocol = (
        environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)
        or environ.get(OTEL_EXPORTER_OTLP_PROTOCOL)
        or "http/protobuf"
    )
    return "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"


def _load_exporter(name: str) -> SpanExporter | None:
    found = next(iter(entry_points(group=EXPORTERS, name=name)), None)
    if found is None:
        logger.warning(
            "no traces: the environment asks for the exporter %r, which is not installed here. "
            "For OTLP over HTTP: pip install 'latentmas[tracing]'.",
            name,
        )
        return None
    try:
        exporter: SpanExporter = found.load()()
    except Exception:
        logger.exception("no traces: the exporter %r cannot be made", name)
        return None
    return exporter


def _resource(instance: str | None) -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, or what we say."""
    asked = OTELResourceDetector().detect().attributes
    own = {SERVICE_NAME: SERVICE} | ({SERVICE_INSTANCE_ID: instance} if instance else {})
    return Resource.create({name: value for name, value in own.items() if name not in asked})
