"""Keys for tests, and an HTTP face that asks for them."""

import httpx

from deployments.access import NO_LIMITS, AccessConfig, Limits, Right
from deployments.api.access import Access
from deployments.api.adapters import AdapterAdmin
from deployments.api.keys import ApiKey, KeyRing, digest_of
from deployments.api.limits import CallerLimits
from deployments.api.openai.models import ChatModels
from deployments.args import AdaptersConfig
from deployments.ingress import build_http_app
from deployments.tracing import NO_TRACING, Tracing
from tests.deployments.fake_reasoner import OFFERED

ALICE = "lm-alice-0123456789abcdef"
BOB = "lm-bob-0123456789abcdef"
ADMIN = "lm-admin-0123456789abcdef"
LOADER = "lm-loader-0123456789abcdef"
SECRETS = (ALICE, BOB, ADMIN, LOADER)

ASK_ONLY = (Right.ASK,)
RIGHTS = {ALICE: ASK_ONLY, BOB: ASK_ONLY, ADMIN: tuple(Right), LOADER: (Right.ADMIN,)}


def name_of(key: str) -> str:
    return key.split("-")[1]


def make_key(key: str, *, limits: Limits = NO_LIMITS) -> ApiKey:
    name = name_of(key)
    return ApiKey(name, f"{name}-inc", frozenset(RIGHTS[key]), limits, digest_of(key))


def make_access(*, limits=None, clock=None, **config) -> Access:
    """With all keys; ``limits`` by key."""
    keys = tuple(make_key(key, limits=(limits or {}).get(key, NO_LIMITS)) for key in SECRETS)
    counts = CallerLimits(clock) if clock else CallerLimits()
    return Access(AccessConfig(**config), KeyRing(fixed=keys), counts)


def make_app(
    reasoner, access, *, admin: bool = True, tracing: Tracing = NO_TRACING, conversations=None
):
    base = "Qwen2.5-3B-Instruct"
    adapters = AdapterAdmin(AdaptersConfig(admin=admin), base)
    models = ChatModels(OFFERED, base)
    return build_http_app(reasoner, adapters, models, access, tracing, conversations=conversations)


def client_of(app, key: str | None = None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else None
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)
