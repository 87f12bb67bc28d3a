"""The pages about HTTP say what the service says of itself, and nothing that it has not."""

import dataclasses
import re
from pathlib import Path

import pytest

from deployments.api.streaming import AS_EVENTS
from latentmas_core.engine.stats import EngineStats
from latentmas_core.lora.cached_adapter import AdapterState, AdapterStats
from latentmas_core.lora.library import AdapterInfo
from latentmas_core.lora.registry import AdapterEntry
from tools.http_reference import PAGE, calls_of, description, page

ROOT = Path(__file__).parents[2]
DESCRIBED = description()
CALLS = {(method, path) for method, path, _ in calls_of(DESCRIBED)}
SCHEMAS = DESCRIBED["components"]["schemas"]
HTTP = (ROOT / "docs/http.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NAMED_CALL = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) (/[\w/{}.-]*)")
# In text or in a URL; what is behind it may be a query or the end of a sentence.
NAMED_PATH = re.compile(r"(/v1/[a-z_/]+[a-z](?:/\{\w+\}(?:/[a-z]+)?)?|/runsync|/healthz|/readyz)\b")
PAGES_OF_THE_SERVICE = {"/", "/docs", "/openapi.json"}


def shape(path: str) -> str:
    """Whatever a parameter is called."""
    return re.sub(r"\{\w+\}", "{}", path.rstrip("."))


def section(title: str) -> str:
    return HTTP.partition(f"## {title}\n")[2].partition("\n## ")[0]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", text))


def test_the_reference_is_what_the_service_says_of_itself():
    assert PAGE.read_text() == page(DESCRIBED), "stale: python -m tools.http_reference"


def test_every_call_has_a_section_with_its_errors():
    told = PAGE.read_text()
    for method, path, call in calls_of(DESCRIBED):
        own = told.partition(f"\n## {method} {path}\n")[2].partition("\n## ")[0]
        (errors,) = re.findall(r"Errors: ([\d, ]+)\.$", own, flags=re.M)
        assert set(errors.split(", ")) == {code for code in call["responses"] if code[0] != "2"}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_field_of_a_model_says_what_it_is(name):
    forms = [form for form in (SCHEMAS[name], *SCHEMAS[name].get("anyOf", ())) if form]
    for form in forms:
        for field, schema in form.get("properties", {}).items():
            model = SCHEMAS.get(schema.get("$ref", "").rpartition("/")[2], {})
            assert schema.get("description") or model.get("description"), f"{name}.{field}"


def test_http_md_lists_every_call_once():
    table = HTTP.partition("| call | what |\n")[2].partition("\n\n")[0]
    listed = NAMED_CALL.findall("\n".join(row.split(" | ")[0] for row in table.splitlines()))
    assert sorted(listed) == sorted(CALLS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_names_a_call_that_there_is_not(path):
    calls = {(method, shape(known)) for method, known in CALLS}
    paths = {known for _, known in calls}
    text = path.read_text()
    for method, named in NAMED_CALL.findall(text):
        if named.endswith("..."):  # all below it
            assert any(one == method and known.startswith(named[:-3]) for one, known in CALLS)
        elif named not in PAGES_OF_THE_SERVICE:
            assert (method, shape(named)) in calls, f"{method} {named}"
    for named in NAMED_PATH.findall(text):
        assert shape(named) in paths, named


def test_a_path_that_there_is_not_would_be_found():
    assert NAMED_CALL.findall("ask `POST /v1/think`.") == [("POST", "/v1/think")]
    assert NAMED_PATH.findall("curl http://127.0.0.1:8000/v1/think/all?x=1") == ["/v1/think/all"]
    assert NAMED_PATH.findall("`/v1/conversations/{id}/export`") == [
        "/v1/conversations/{id}/export"
    ]


def test_http_md_has_every_code_of_an_error():
    sources = "".join(path.read_text() for path in (ROOT / "deployments").rglob("*.py"))
    codes = set(re.findall(r'ErrorKind\(\s*\d+,\s*"\w+",\s*"(\w+)"', sources))
    assert len(codes) >= 15
    rows = re.findall(r"^\| \d+ \| (.+) \|$", section("Errors"), flags=re.M)
    assert codes <= names_in(" ".join(rows))


def test_http_md_has_every_event_of_a_stream():
    (messages,) = AS_EVENTS["content"].values()
    kinds = [form["properties"]["event"]["enum"] for form in messages["schema"]["anyOf"]]
    rows = re.findall(r"^\| (`.+?) \| ", section("Events of a stream"), flags=re.M)
    assert names_in(" ".join(rows)) == {name for names in kinds for name in names}


def test_http_md_has_what_replicas_and_adapters_tell():
    told = names_in(section("Adapters and what replicas hold"))
    stats = [
        field.name for kind in (EngineStats, AdapterStats) for field in dataclasses.fields(kind)
    ]
    assert {*stats, *AdapterInfo.model_fields, *AdapterEntry.model_fields, *AdapterState} <= told
