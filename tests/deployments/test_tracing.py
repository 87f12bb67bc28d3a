"""What the standard variables of OpenTelemetry make of a process, and how spans end and cross."""

import asyncio
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import INVALID_SPAN, get_current_span

from deployments import tracing as tracing_module
from deployments.tracing import (
    NO_TRACING,
    as_trace_context,
    below,
    continued,
    current_trace_id,
    exporter_names,
    open_tracing,
    trace_id_of,
)
from tests.deployments.seen_spans import SeenSpans, failure_of, is_cut, is_well

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
TIMEOUT_S = 10.0


class Kept(SpanExporter):
    """In place of what is installed; ``made`` are all of them."""

    made: ClassVar[list["Kept"]] = []

    def __init__(self):
        self.spans = []
        Kept.made.append(self)

    def export(self, spans):
        self.spans += spans
        return SpanExportResult.SUCCESS


@pytest.fixture
def installed(monkeypatch):
    """The exporters that are installed: by default OTLP over HTTP and one that cannot be made."""
    Kept.made.clear()
    names = {"otlp_proto_http": "Kept", "broken": "nothing_of_the_kind"}
    points = [
        EntryPoint(name, f"{__name__}:{value}", tracing_module.EXPORTERS)
        for name, value in names.items()
    ]
    monkeypatch.setattr(
        tracing_module, "entry_points", lambda *, group, name: [p for p in points if p.name == name]
    )
    opened = []

    def opening(environ, **options):
        opened.append(open_tracing(environ, **options))
        return opened[-1]

    yield opening
    for one in opened:
        if one.is_on:
            one._provider.shutdown()


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, []),
        (ENDPOINT, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": " console , otlp "}, ["console", "otlp_proto_http"]),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, []),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": ""}, ["otlp_proto_http"]),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        (
            ENDPOINT
            | {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ["otlp_proto_http"],
        ),
    ],
)
def test_exporters_are_those_of_the_standard_variables(environ, names):
    assert exporter_names(environ) == names


@pytest.mark.parametrize("environ", [{}, ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}])
def test_without_an_exporter_or_when_disabled_there_are_no_spans(installed, environ):
    tracing = installed(environ)
    with tracing.span("any") as span:
        assert span is INVALID_SPAN
    assert not tracing.is_on
    assert as_trace_context(span) == {}
    assert Kept.made == []


async def test_spans_that_have_ended_are_exported_when_the_process_closes(installed):
    tracing = installed(ENDPOINT, instance="r1")
    with tracing.span("any"):
        pass
    (exporter,) = Kept.made
    assert exporter.spans == [], "it exports in batches"
    await tracing.close()
    (span,) = exporter.spans
    assert span.resource.attributes["service.name"] == "latentmas"
    assert span.resource.attributes["service.instance.id"] == "r1"


async def test_close_waits_a_moment_and_not_for_ever(installed, monkeypatch):
    tracing = installed(ENDPOINT)
    may_go_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(tracing_module, "FLUSH_TIMEOUT_S", 0.05)
    monkeypatch.setattr(
        tracing._provider,
        "force_flush",
        lambda: asyncio.run_coroutine_threadsafe(may_go_on.wait(), loop).result(),
    )
    await asyncio.wait_for(tracing.close(), TIMEOUT_S)
    may_go_on.set()


def test_name_of_the_service_is_that_of_the_environment(installed, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-7,team=red")
    attributes = installed(ENDPOINT, instance="r1")._provider.resource.attributes
    own = {key: attributes[key] for key in ("service.name", "service.instance.id", "team")}
    assert own == {"service.name": "mine", "service.instance.id": "pod-7", "team": "red"}


def test_sampler_is_that_of_the_environment(installed, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with installed(ENDPOINT).span("any") as span:
        assert not span.is_recording()
        assert trace_id_of(span) is not None


@pytest.mark.parametrize("name", ["broken", "zipkin"])
def test_exporter_that_cannot_be_had_is_told_and_stops_nobody(installed, caplog, name):
    tracing = installed({"OTEL_TRACES_EXPORTER": name})
    assert not tracing.is_on
    assert "no traces" in caplog.text
    assert repr(name) in caplog.text


def test_provider_that_the_process_has_is_used(installed, monkeypatch):
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    tracing = installed({})
    assert tracing.is_on
    assert tracing._provider is provider
    assert not installed({"OTEL_SDK_DISABLED": "true"}).is_on


def test_span_goes_on_in_another_process():
    spans = SeenSpans()
    with spans.tracing.span("here") as here:
        context = as_trace_context(here)
        with spans.tracing.span("there", parent=continued(context)):
            pass
    assert context == {"traceparent": context["traceparent"]}
    assert spans.tree(spans.one("here")) == {"there": {}}
    assert spans.one("there").context.trace_id == here.context.trace_id


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_span_of_what_is_cancelled_is_cut_and_not_failed(error):
    spans = SeenSpans()
    with pytest.raises(type(error)), spans.tracing.span("any"):
        raise error
    assert is_cut(spans.one("any"))
    assert spans.open_names == []


def test_span_of_what_fails_has_the_class_of_the_error_and_not_its_words():
    spans = SeenSpans()
    with pytest.raises(ValueError, match="password"), spans.tracing.span("any"):
        raise ValueError("password")
    assert failure_of(spans.one("any")) == "ValueError"
    assert "password" not in spans.texts()


def test_attributes_that_are_none_are_left_out():
    spans = SeenSpans()
    with spans.tracing.span("any", http__route="/v1", a=None):
        pass
    assert spans.one("any").attributes == {"http.route": "/v1"}
    assert is_well(spans.one("any"))


def test_no_request_no_trace():
    assert current_trace_id() is None
    assert NO_TRACING.begin("any") is INVALID_SPAN
    assert get_current_span(below(INVALID_SPAN)) is INVALID_SPAN
