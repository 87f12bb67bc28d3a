"""RemoteBackend: asks a running service over HTTP."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from latentmas_core.chat import ChatMessage
from latentmas_core.cli.backend import (
    AdapterListing,
    KnownAdapter,
    LoadedAdapter,
    ModelInfo,
    PipelineInfo,
    ServiceError,
)
from latentmas_core.cli.wire_events import read_event, server_sent_events
from latentmas_core.context.conversations.records import (
    ConversationExport,
    ConversationInfo,
    ConversationList,
)
from latentmas_core.events import AnswerDone, Event

PIPELINE_PREFIX = "latentmas/"

_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 600.0  # between two messages: an agent may wait for its turn as long
_EVENT_STREAM = "text/event-stream"
_MAX_SHOWN_CHARS = 200
_MAX_LISTED = 100


class RemoteBackend:
    """``url`` is where the service is, without a path or with its ``/v1``."""

    def __init__(
        self, url: str, *, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def open(self) -> None:
        self.pipelines()

    def stream(self, fields: Mapping[str, Any]) -> Generator[Event, None, None]:
        body = {**fields, "stream": True}
        with (
            self._failures_named(),
            self._client.stream("POST", "/v1/reason", json=body) as response,
        ):
            self._check(response)
            if not response.headers.get("content-type", "").startswith(_EVENT_STREAM):
                raise self._strange("it does not stream")
            for name, content in server_sent_events(response.iter_lines()):
                event = self._read(name, content)
                if event is not None:
                    yield event
                if isinstance(event, AnswerDone):
                    return
        raise ServiceError(f"{self.url} ended the answer before it was complete. Ask again.")

    def pipelines(self) -> tuple[PipelineInfo, ...]:
        with self._shape_checked():
            return tuple(
                PipelineInfo(
                    name=one["name"],
                    agents=tuple(dict.fromkeys(node["agent"] for node in one["nodes"])),
                    description=one["description"],
                    is_default=one["default"],
                )
                for one in self._get("/v1/pipelines")["data"]
            )

    def models(self) -> tuple[ModelInfo, ...]:
        with self._shape_checked():
            return tuple(_model_info(one) for one in self._get("/v1/models")["data"])

    def adapters(self) -> AdapterListing:
        with self._shape_checked():
            listing = self._get("/v1/adapters")
            return AdapterListing(
                tuple(LoadedAdapter(one["name"], _states(one)) for one in listing["data"]),
                tuple(
                    KnownAdapter(
                        name=one["name"],
                        base_model=one["base_model"],
                        domain=one["domain"],
                        path=one["path"],
                        fits=one["compatible"],
                    )
                    for one in listing["registry"]
                ),
            )

    def ready_adapter(self, wanted: str) -> str:
        loaded = [one.name for one in self.adapters().loaded]
        if wanted not in loaded:
            raise ServiceError(
                f"adapter {wanted!r} is not loaded on {self.url}; loaded are "
                f"{', '.join(loaded) or 'none'}. Load it: latentmas adapters load {wanted} PATH "
                f"--endpoint {self.url}"
            )
        return wanted

    def conversations(self) -> tuple[ConversationInfo, ...]:
        listed = self._get(f"/v1/conversations?limit={_MAX_LISTED}")
        with self._shape_checked():
            return ConversationList.model_validate(listed).data

    def messages(self, conversation_id: str) -> list[ChatMessage]:
        try:
            exported = self._get(f"/v1/conversations/{quote(conversation_id, safe='')}/export")
        except ServiceError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return []
            raise
        with self._shape_checked():
            turns = ConversationExport.model_validate(exported).turns
        return [message for turn in turns for message in turn.as_messages()]

    def load_adapter(
        self, name: str, path: str | None, *, revision: str | None, pinned: bool
    ) -> None:
        """On every replica. Without ``path`` the name is one of the service's registry."""
        given = {"lora_path": path, "revision": revision}
        body = {"lora_name": name, "pinned": pinned}
        body |= {key: value for key, value in given.items() if value is not None}
        self._call("POST", "/v1/load_lora_adapter", body)

    def unload_adapter(self, name: str) -> None:
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def _get(self, path: str) -> Any:
        return self._call("GET", path)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        with self._failures_named():
            response = self._client.request(method, path, json=body)
        self._check(response)
        try:
            return response.json()
        except ValueError:
            raise self._strange("it does not answer in JSON") from None

    def _check(self, response: httpx.Response) -> None:
        """Raise ServiceError with the service's own words unless it answered well."""
        if response.status_code == httpx.codes.OK:
            return
        response.read()
        try:
            error = response.json()["error"]
            message = _told(error) + _remedy(response)
            raise ServiceError(message, param=error["param"], status=response.status_code)
        except (ValueError, KeyError, TypeError):
            shown = " ".join(response.text.split())[:_MAX_SHOWN_CHARS]
            raise self._strange(f"it answered {response.status_code} {shown!r}") from None

    def _read(self, name: str, content: str) -> Event | None:
        try:
            payload = json.loads(content)
            if name == "error":
                raise ServiceError(_told(payload["error"]))
            return read_event(name, payload)
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise self._strange(f"{field} of its event {name!r} is not understood here") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._strange(f"its event {name!r} cannot be read") from None

    @contextmanager
    def _shape_checked(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValidationError):
            raise self._strange("its answer lacks what is expected there") from None

    def _strange(self, what: str) -> ServiceError:
        return ServiceError(
            f"{self.url} is no LatentMAS service of this version: {what}. Check --endpoint."
        )

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise ServiceError(
                f"nothing answers on {self.url}. Check --endpoint, or start the service: make serve"
            ) from None
        except httpx.TimeoutException:
            raise ServiceError(f"{self.url} did not answer in time. Try again later.") from None
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} cannot be asked: {error}. Try again.") from None


def _model_info(one: Mapping[str, Any]) -> ModelInfo:
    name = one["id"]
    if name.startswith(PIPELINE_PREFIX):
        return ModelInfo(name, "pipeline", f"on {one['root']}")
    if one["parent"] is not None:
        return ModelInfo(name, "adapter", f"of {one['parent']}")
    return ModelInfo(name, "base", "plain chat")


def _states(one: Mapping[str, Any]) -> str:
    """``thinkers: ready, absent`` for each group: a state per replica."""
    return "; ".join(f"{group}: {', '.join(states)}" for group, states in one["states"].items())


def _told(error: Mapping[str, Any]) -> str:
    return str(error["message"])


def _remedy(response: httpx.Response) -> str:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return " Give --api-key, or set LATENTMAS_API_KEY."
    if retry_after := response.headers.get("retry-after"):
        return f" Try again in {retry_after} s."
    return ""
