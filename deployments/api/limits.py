"""How often and how much at once each caller may ask, counted within one ingress replica."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.access import Caller

SECONDS_PER_MINUTE = 60.0
BUSY_RETRY_S = 1.0


class OverLimit(Exception):  # noqa: N818  # a refusal, not a failure
    """The caller has to wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class Bucket:
    """Holds ``per_minute`` requests at most and is filled evenly with as many in a minute."""

    def __init__(self, per_minute: int, *, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._filled_at = now

    def take(self, now: float, num: int = 1) -> float:
        """Take so many out: 0, or in how many seconds there will be as many."""
        per_second = self.per_minute / SECONDS_PER_MINUTE
        gained = (now - self._filled_at) * per_second
        self._level = min(self._level + gained, float(self.per_minute))
        self._filled_at = now
        if self._level < num:
            return (num - self._level) / per_second
        self._level -= num
        return 0.0

    def give_back(self) -> None:
        """One that was taken for nothing."""
        self._level = min(self._level + 1.0, float(self.per_minute))


@dataclass
class _Account:
    """What one key is doing."""

    num_ongoing: int = 0
    bucket: Bucket | None = None

    @contextmanager
    def ongoing(self, num_requests: int) -> Iterator[None]:
        self.num_ongoing += num_requests
        try:
            yield
        finally:
            self.num_ongoing -= num_requests


class CallerLimits:
    """Admits requests of callers, or raises OverLimit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str | None, _Account] = {}

    @property
    def num_ongoing(self) -> int:
        return sum(account.num_ongoing for account in self._accounts.values())

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[None]:
        """Count a request of ``caller`` while it goes on."""
        account = self._accounts.setdefault(caller.key_name, _Account())
        self._check_concurrency(caller, account, 1)
        self._check_rate(caller, account, 1)
        with account.ongoing(1):
            yield

    @contextmanager
    def counted_as(self, num_requests: int, caller: Caller) -> Iterator[None]:
        """Within ``admitted``: the one request counts as so many while it goes on.

        ConfigError if ``caller`` may never ask for so much at once. What is refused costs nothing.
        """
        caller.check_batch(num_requests)
        account = self._accounts[caller.key_name]
        if account.bucket is not None:
            account.bucket.give_back()
        self._check_concurrency(caller, account, num_requests - 1)
        self._check_rate(caller, account, num_requests)
        with account.ongoing(num_requests - 1):
            yield

    def _check_concurrency(self, caller: Caller, account: _Account, num_more: int) -> None:
        limit = caller.limits.max_concurrent_requests
        if limit is not None and account.num_ongoing + num_more > limit:
            raise OverLimit(
                f"{account.num_ongoing} requests of this key are under way; "
                f"max_concurrent_requests is {limit}. Wait for one to end.",
                retry_after_s=BUSY_RETRY_S,
            )

    def _check_rate(self, caller: Caller, account: _Account, num_requests: int) -> None:
        limit = caller.limits.max_requests_per_minute
        if limit is None:
            account.bucket = None
            return
        now = self._clock()
        if account.bucket is None or account.bucket.per_minute != limit:
            account.bucket = Bucket(limit, now=now)
        wait_s = account.bucket.take(now, num_requests)
        if wait_s > 0.0:
            raise OverLimit(
                f"max_requests_per_minute of this key is {limit}. Retry after {wait_s:.1f} s.",
                retry_after_s=wait_s,
            )
