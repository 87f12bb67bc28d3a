"""docs/openai.md against the schema, and against what OpenAI's own client can send."""

import re
from pathlib import Path

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from deployments.api.openai.schema import ChatBody, LatentOptions, StreamOptions
from deployments.api.openai.to_request import PLAIN_OPTIONS

PAGE = (Path(__file__).parents[2] / "docs/openai.md").read_text()
FIELDS = PAGE.partition("## Fields\n")[2].partition("\n## ")[0]
TABLE, _, BELOW = FIELDS.partition("\n\nEvery other field")
ROWS = [row.strip("| ").split(" | ") for row in TABLE.strip().splitlines()[2:]]


def names_in(text):
    return re.findall(r"`([a-z_.]+)`", text)


def test_table_has_each_field_of_the_schema_once():
    named = [name for first, _ in ROWS for name in names_in(first)]
    parts = [name for name in named if "." in name]
    assert sorted(set(named) - set(parts) | {"stream_options"}) == sorted(ChatBody.model_fields)
    assert parts == [f"stream_options.{name}" for name in StreamOptions.model_fields]
    assert len(named) == len(set(named))


def test_options_of_our_own_are_those_of_the_schema():
    (told,) = [second for first, second in ROWS if first == "`latentmas`"]
    assert sorted(names_in(told.partition(":")[2])) == sorted(LatentOptions.model_fields)


def test_options_of_plain_chat_are_those_that_are_taken():
    told = BELOW.replace("\n", " ").partition("In plain chat `latentmas` takes only")[2]
    told = told.partition(":")[0]
    times = {name for name in LatentOptions.model_fields if name.endswith("_s")}
    assert "and the times" in told
    assert {*names_in(told), *times} == PLAIN_OPTIONS


def test_each_field_that_openais_client_can_send_is_in_the_table_or_named_as_refused():
    refused = BELOW.replace("\n", " ").partition("these are ")[2].partition(";")[0]
    sent = set(CompletionCreateParamsBase.__annotations__)
    assert sorted(names_in(refused)) == sorted(sent - set(ChatBody.model_fields))
