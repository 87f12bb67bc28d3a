"""``python -m tools.http_reference`` writes docs/http-reference.md.

All that stands in it comes from the description that the service gives of itself, /openapi.json.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from deployments.api.adapters import AdapterAdmin
from deployments.api.openai.models import ChatModels
from deployments.args import AdaptersConfig
from deployments.ingress import build_http_app
from deployments.reasoner import Reasoner
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations

PAGE = Path(__file__).parents[1] / "docs/http-reference.md"
HEAD = """# HTTP reference

Written by `python -m tools.http_reference` from the service's own `/openapi.json`, not by hand.
`/docs` of a running service shows the same with its own limits, and lets each call be tried;
[http.md](http.md) has the events of a stream, examples, and what a schema cannot say. Unknown
fields are refused by name.
"""
# What other models repeat of this one is told there alone.
COMMON_MODEL = "ReasonBody"

Schema = dict[str, Any]
_REFERENCE = "#/components/schemas/"
_RANGES = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}


def main() -> None:
    PAGE.write_text(page(description()), encoding="utf-8")


def description() -> Schema:
    """Of a service with every call that there is."""
    app = build_http_app(
        cast(Reasoner, SimpleNamespace(adapters=None)),  # asked nothing
        AdapterAdmin(AdaptersConfig(), "base"),
        ChatModels((), "base"),
        conversations=Conversations(ConversationsConfig()),  # opened by its first call
    )
    return app.openapi()


def calls_of(described: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in described["paths"].items():
        for method, call in methods.items():
            yield method.upper(), path, call


def page(described: Schema) -> str:
    models = Models(described["components"]["schemas"])
    calls = [_call(models, *one) for one in calls_of(described)]
    return "\n".join([HEAD, _errors(described), *calls, "## Models\n", *models.sections()])


class Models:
    """The named parts of a description."""

    def __init__(self, named: dict[str, Schema]) -> None:
        self._named = named

    def sections(self) -> Iterator[str]:
        """One for each that has fields."""
        for name in sorted(self._named):
            if list(_fields_of(self._named[name])):
                yield self._section(name)

    def _section(self, name: str) -> str:
        known = {} if name == COMMON_MODEL else self._named[COMMON_MODEL]["properties"]
        rows: list[str] = []
        repeated: list[str] = []
        for field, schema, is_required in _fields_of(self._named[name]):
            if schema == known.get(field):
                repeated.append(f"`{field}`")
            else:
                rows.append(self.row(field, schema, self.meaning(schema), is_required=is_required))
        parts = [f"### {name}\n"]
        if "description" in self._named[name]:
            parts.append(_in_markdown(self._named[name]["description"]) + "\n")
        if rows:
            parts += ["| field | type | default | what |", "|---|---|---|---|", *rows, ""]
        if repeated:
            parts.append(f"As in `{COMMON_MODEL}`: {', '.join(repeated)}.\n")
        return "\n".join(parts)

    def meaning(self, schema: Schema) -> str:
        """A description that is that of the type itself is left out of the field."""
        own: str = schema.get("description", "")
        return own or self._resolved(schema).get("description", "")

    def row(self, name: str, schema: Schema, what: str, *, is_required: bool) -> str:
        kind = self.type_of(schema)
        default = "required" if is_required else _default(schema, may_be_null="null" in kind)
        cells = (f"`{name}`", kind, default, _in_markdown(what))
        return "| " + " | ".join(re.sub(r"\s+", " ", cell) for cell in cells) + " |"

    def type_of(self, schema: Schema) -> str:
        """In a few words; what is a section of this page is a link to it."""
        return " or ".join(dict.fromkeys(self._kinds_of(schema)))

    def _kinds_of(self, schema: Schema) -> Iterator[str]:
        found = self._resolved(schema)
        if "const" in found or "enum" in found:
            values = found["enum"] if "enum" in found else [found["const"]]
            yield from (f"`{_json(one)}`" for one in values)
        elif found is not schema:
            name = schema["$ref"].removeprefix(_REFERENCE)
            yield f"[{name}](#{name.lower()})"
        elif "anyOf" in schema or "oneOf" in schema:
            for form in schema.get("anyOf") or schema["oneOf"]:
                yield from self._kinds_of(form)
        elif isinstance(schema.get("type"), list):
            for kind in schema["type"]:
                yield from self._kinds_of(schema | {"type": kind})
        else:
            yield self._kind_of(schema)

    def _kind_of(self, schema: Schema) -> str:
        kind: str = schema.get("type", "any JSON")
        if kind == "array":
            items = {"anyOf": schema["prefixItems"]} if "prefixItems" in schema else {}
            return f"list{_size(schema, 'Items')} of {self.type_of(schema.get('items', items))}"
        if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {self.type_of(schema['additionalProperties'])}"
        return f"{kind}{_size(schema, 'Length', ' characters')}{_range(schema)}"

    def _resolved(self, schema: Schema) -> Schema:
        if "$ref" not in schema:
            return schema
        return self._named[schema["$ref"].removeprefix(_REFERENCE)]


def _errors(described: Schema) -> str:
    rows = [
        f"| {name.removeprefix('Error')} | {answer['description']} |"
        for name, answer in described["components"]["responses"].items()
    ]
    table = ["| status | when |", "|---|---|", *rows]
    return "\n".join(["## Errors\n", "All are an [ErrorBody](#errorbody).\n", *table, ""])


def _call(models: Models, method: str, path: str, call: Schema) -> str:
    parts = [f"## {method} {path}\n", _in_markdown(call["description"]) + "\n"]
    parameters = call.get("parameters", ())
    if parameters:
        parts += ["| parameter | type | default | where |", "|---|---|---|---|"]
        parts += [
            models.row(one["name"], one["schema"], one["in"], is_required=one["required"])
            for one in parameters
        ]
        parts.append("")
    if "requestBody" in call:
        body = call["requestBody"]["content"]["application/json"]["schema"]
        parts.append(f"Body: {models.type_of(body)}.\n")
    (answer,) = (one for code, one in call["responses"].items() if code[0] == "2")
    kinds = [_answer(models, kind, one) for kind, one in answer["content"].items()]
    errors = [code for code in call["responses"] if code[0] != "2"]
    parts.append(f"Answer: {' or '.join(kinds)}. Errors: {', '.join(errors)}.\n")
    return "\n".join(parts)


def _answer(models: Models, kind: str, content: Schema) -> str:
    if kind == "text/event-stream":
        return "a stream of events ([http.md](http.md))"
    return models.type_of(content.get("schema", {}))


def _fields_of(schema: Schema) -> Iterator[tuple[str, Schema, bool]]:
    """Name, schema and whether it is required; where a model has several forms, of all of them."""
    forms = [form for form in (schema, *schema.get("anyOf", ())) if "properties" in form]
    for name in dict.fromkeys(name for form in forms for name in form["properties"]):
        kinds = [form["properties"][name] for form in forms]
        is_required = all(name in form.get("required", ()) for form in forms)
        if all(kind == kinds[0] for kind in kinds):
            yield name, kinds[0], is_required
        else:
            yield (
                name,
                {"anyOf": kinds, "description": kinds[0].get("description", "")},
                is_required,
            )


def _default(schema: Schema, *, may_be_null: bool) -> str:
    """FastAPI leaves a default of null out."""
    value = schema.get("default", None if may_be_null else {})
    return "its own" if isinstance(value, dict) else f"`{_json(value)}`"


def _json(value: Any) -> str:
    constants = {None: "null", True: "true", False: "false", "": '""'}
    return constants.get(value, str(value)) if isinstance(value, str | bool | None) else str(value)


def _size(schema: Schema, of: str, unit: str = "") -> str:
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    if least == most:
        return f" ({most}{unit})"
    if most is None:
        return f" ({least} or more{unit})" if least else ""
    return f" ({least} to {most}{unit})" if least else f" (up to {most}{unit})"


def _range(schema: Schema) -> str:
    told = [f"{sign} {schema[name]:.15g}" for name, sign in _RANGES.items() if name in schema]
    return f" ({', '.join(told)})" if told else ""


def _in_markdown(words: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", words)


if __name__ == "__main__":
    main()
