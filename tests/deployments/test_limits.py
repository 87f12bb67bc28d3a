"""How often and how much at once a key may ask."""

import asyncio

import pytest

from deployments.access import AccessConfig, Caller, Limits
from deployments.api.access import Access
from deployments.api.limits import Bucket, CallerLimits, OverLimit
from tests.deployments.fake_reasoner import FakeReasoner
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.keys import ALICE, BOB, client_of, make_access, make_app


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_bucket_gives_what_it_holds_and_says_when_there_is_more():
    bucket = Bucket(30, now=0.0)
    assert [bucket.take(0.0) for _ in range(30)] == [0.0] * 30
    assert bucket.take(0.0) == pytest.approx(2.0)
    assert bucket.take(1.5) == pytest.approx(0.5)
    assert bucket.take(2.0) == 0.0
    assert bucket.take(2.0) == pytest.approx(2.0)


def test_bucket_gives_many_at_once_or_none():
    bucket = Bucket(60, now=0.0)
    assert bucket.take(0.0, 50) == 0.0
    assert bucket.take(0.0, 30) == pytest.approx(20.0)
    assert bucket.take(0.0, 10) == 0.0
    bucket.give_back()
    assert bucket.take(0.0, 1) == 0.0
    assert bucket.take(0.0, 1) == pytest.approx(1.0)


def test_bucket_holds_no_more_than_a_minute_gives():
    bucket = Bucket(3, now=0.0)
    assert [bucket.take(3600.0) for _ in range(3)] == [0.0] * 3
    assert bucket.take(3600.0) > 0.0


def test_no_limit_admits_everything():
    limits = CallerLimits()
    for _ in range(1000):
        with limits.admitted(Caller()):
            pass
    assert limits.num_ongoing == 0


def test_what_is_refused_for_being_too_much_at_once_costs_nothing():
    clock = Clock()
    limits = CallerLimits(clock)
    caller = Caller("alice", limits=Limits(max_concurrent_requests=1, max_requests_per_minute=2))
    with limits.admitted(caller):
        for _ in range(10):
            with pytest.raises(OverLimit, match="max_concurrent_requests is 1"):
                limits.admitted(caller).__enter__()
    with limits.admitted(caller):
        assert limits.num_ongoing == 1
    assert limits.num_ongoing == 0


def test_changed_limit_holds_from_the_next_request():
    limits = CallerLimits(Clock())
    few = Caller("alice", limits=Limits(max_requests_per_minute=1))
    with limits.admitted(few):
        pass
    with pytest.raises(OverLimit):
        limits.admitted(few).__enter__()
    with limits.admitted(Caller("alice", limits=Limits(max_requests_per_minute=2))):
        pass


async def test_request_above_the_rate_is_429_and_told_when_to_come_back():
    clock = Clock()
    reasoner = FakeReasoner()
    access = make_access(clock=clock, limits={ALICE: Limits(max_requests_per_minute=2)})
    app = make_app(reasoner, access)
    async with client_of(app, ALICE) as client:
        assert [(await ask(client)).status_code for _ in range(2)] == [200, 200]
        response = await ask(client)
        message = assert_error(response, 429, code="rate_limit_exceeded", type_="rate_limit_error")
        assert "max_requests_per_minute of this key is 2" in message
        assert response.headers["retry-after"] == "30"
        async with client_of(app, BOB) as other:
            assert (await ask(other)).status_code == 200, "each key has its own"
        assert (await client.get("/healthz")).status_code == 200
        clock.now += 30.0
        assert (await ask(client)).status_code == 200
    assert len(reasoner.requests) == 4


async def test_wrong_keys_use_up_nobodys_rate():
    access = make_access(clock=Clock(), max_body_bytes=1000, limits={})
    app = make_app(FakeReasoner(), access)
    async with client_of(app, "wrong") as client:
        for _ in range(20):
            assert (await ask(client)).status_code == 401
    assert access.limits.num_ongoing == 0


class WaitingReasoner(FakeReasoner):
    """Answers once it is told to."""

    def __init__(self):
        super().__init__()
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def stream(self, request):
        self.requests.append(request)
        self.was_asked.set()
        await self.may_answer.wait()
        async for event in super().stream(request):
            yield event


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_request_too_many_at_once_is_429_until_one_has_ended(is_streamed):
    reasoner = WaitingReasoner()
    access = make_access(limits={ALICE: Limits(max_concurrent_requests=1)})
    async with client_of(make_app(reasoner, access), ALICE) as client:
        first = asyncio.create_task(ask(client, stream=is_streamed))
        await asyncio.wait_for(reasoner.was_asked.wait(), 10)
        response = await ask(client)
        assert_error(response, 429, code="rate_limit_exceeded", type_="rate_limit_error")
        assert response.headers["retry-after"] == "1"
        reasoner.may_answer.set()
        assert (await first).status_code == 200
        assert (await ask(client)).status_code == 200
    assert access.limits.num_ongoing == 0


async def test_request_that_is_cancelled_or_fails_is_counted_no_longer():
    reasoner = WaitingReasoner()
    access = make_access(limits={ALICE: Limits(max_concurrent_requests=1)})
    async with client_of(make_app(reasoner, access), ALICE) as client:
        first = asyncio.create_task(ask(client))
        await asyncio.wait_for(reasoner.was_asked.wait(), 10)
        first.cancel()
        await asyncio.wait([first])
        assert access.limits.num_ongoing == 0
        reasoner.may_answer.set()
        reasoner.error = RuntimeError("broken")
        assert (await ask(client)).status_code == 500
    assert access.limits.num_ongoing == 0


async def ask_many(client, num):
    return await client.post("/v1/batch", json={"requests": ["Why?"] * num})


async def test_each_question_of_a_batch_counts_for_the_rate(reasoner):
    clock = Clock()
    access = make_access(clock=clock, limits={ALICE: Limits(max_requests_per_minute=6)})
    async with client_of(make_app(reasoner, access), ALICE) as client:
        assert (await ask_many(client, 4)).status_code == 200
        response = await ask_many(client, 4)
        assert_error(response, 429, code="rate_limit_exceeded", type_="rate_limit_error")
        assert response.headers["retry-after"] == "20"
        clock.now += 20.0
        assert (await ask_many(client, 4)).status_code == 200, "what was refused has cost nothing"
        assert (await ask(client)).status_code == 429
    assert len(reasoner.requests) == 8
    assert access.limits.num_ongoing == 0


async def test_each_question_of_a_batch_counts_while_it_goes_on():
    reasoner = WaitingReasoner()
    access = make_access(limits={ALICE: Limits(max_concurrent_requests=3)})
    async with client_of(make_app(reasoner, access), ALICE) as client:
        first = asyncio.create_task(ask_many(client, 2))
        await asyncio.wait_for(reasoner.was_asked.wait(), 10)
        assert access.limits.num_ongoing == 2
        response = await ask_many(client, 2)
        assert_error(response, 429, code="rate_limit_exceeded", type_="rate_limit_error")
        reasoner.may_answer.set()
        assert (await first).status_code == 200
        assert (await ask_many(client, 3)).status_code == 200
    assert access.limits.num_ongoing == 0


@pytest.mark.parametrize("field", ["max_concurrent_requests", "max_requests_per_minute"])
async def test_batch_that_the_limits_never_allow_is_refused_with_the_limit(reasoner, field):
    access = make_access(limits={ALICE: Limits(**{field: 3})})
    async with client_of(make_app(reasoner, access), ALICE) as client:
        response = await ask_many(client, 4)
        message = assert_error(response, 422, code="invalid_request", param="requests")
        assert f"requests has 4, and each counts; {field} of this key is 3" in message
    assert reasoner.requests == []
    assert access.limits.num_ongoing == 0


async def test_limits_of_the_config_hold_for_all_callers_together_where_there_are_no_keys():
    config = AccessConfig(limits=Limits(max_requests_per_minute=2))
    app = make_app(FakeReasoner(), Access(config, limits=CallerLimits(Clock())))
    async with client_of(app) as client, client_of(app, "whatever") as other:
        assert (await ask(client)).status_code == 200
        assert (await ask(other)).status_code == 200
        assert (await ask(client)).status_code == 429
