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

    def take(self, now: float) -> float:
        """Take one out: 0, or how many seconds that needs until there is one."""
        per_second = self.per_minute / SECONDS_PER_MINUTE
        gained = (now - self._filled_at) * per_second
        self._level = min(self._level + gained, float(self.per_minute))
        self._filled_at = now
        if self._level < 1.0:
            return (1.0 - self._level) / per_second
        self._level -= 1.0
        return 0.0


@dataclass
class _Account:
    """What one key is doing."""

    num_ongoing: int = 0
    bucket: Bucket | None = None


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
        self._check_concurrency(caller, account)
        self._check_rate(caller, account)
        account.num_ongoing += 1
        try:
            yield
        finally:
            account.num_ongoing -= 1

    def _check_concurrency(self, caller: Caller, account: _Account) -> None:
        limit = caller.limits.max_concurrent_requests
        if limit is not None and account.num_ongoing >= limit:
            raise OverLimit(
                f"{account.num_ongoing} requests of this key are under way; "
                f"max_concurrent_requests is {limit}. Wait for one to end.",
                retry_after_s=BUSY_RETRY_S,
            )

    def _check_rate(self, caller: Caller, account: _Account) -> None:
        limit = caller.limits.max_requests_per_minute
        if limit is None:
            account.bucket = None
            return
        now = self._clock()
        if account.bucket is None or account.bucket.per_minute != limit:
            account.bucket = Bucket(limit, now=now)
        wait_s = account.bucket.take(now)
        if wait_s > 0.0:
            raise OverLimit(
                f"max_requests_per_minute of this key is {limit}. Retry after {wait_s:.1f} s.",
                retry_after_s=wait_s,
            )
