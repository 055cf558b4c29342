"""Retries for calls to a Redis that does not answer: for a limited time, with two log lines."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, Protocol, TypeVar

from redis.exceptions import RedisError

from fetchfleet.jobs.errors import FleetUnreachableError
from fetchfleet.jobs.redis_connection import CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S
from fetchfleet.jobs.redis_errors import is_transient

P = ParamSpec("P")
T = TypeVar("T")

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0

MAX_DELAY_S = 1.0
"""A pause that overruns by more than this shows that this process was suspended."""

MAX_CALL_S = CONNECT_TIMEOUT_S + 2 * SOCKET_TIMEOUT_S + MAX_DELAY_S
"""A call that takes longer shows that this process was suspended: its timeouts are shorter."""

Warn = Callable[[str], None]


class Outage:
    """The time that one call has waited for Redis. It reads no clock: the caller adds what it measured.

    After a suspension of this process the wait restarts at 0, because Redis may have been available.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._pause_s = FIRST_PAUSE_S
        self.waited_s = 0.0
        """Time waited since the first error or the last suspension."""

    @property
    def is_over(self) -> bool:
        """True if the limit is reached."""
        return self.waited_s >= self._limit_s

    def next_pause_s(self) -> float:
        """Return the pause before the next attempt: twice the last, at most MAX_PAUSE_S, within the limit."""
        pause_s = min(self._pause_s, self._limit_s - self.waited_s)
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        return pause_s

    def add(self, elapsed_s: float, limit_s: float) -> None:
        """Add a pause or an attempt; one of more than limit_s counts as a suspension."""
        self.waited_s = self.waited_s + elapsed_s if elapsed_s <= limit_s else 0.0


class Patience:
    """Repeats the calls of one client until Redis answers, each for at most limit_s.

    warn: called with one line when Redis stops answering, and with one when it answers again.
    """

    def __init__(
        self,
        limit_s: float,
        warn: Warn | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limit_s = limit_s
        self._warn = warn or logging.getLogger("fetchfleet").warning
        self._now_s = now_s
        self._sleep = sleep
        self._waiting_calls = 0
        self._away_since_s: float | None = None

    async def repeat(
        self,
        error: Exception,
        function: Callable[P, Awaitable[T]],
        *args: P.args,
        **named: P.kwargs,
    ) -> T:
        """Call a function that failed with a transient error until it succeeds.

        Raises FleetUnreachableError at the limit, and at once any error that is not transient.
        """
        outage = Outage(self._limit_s)
        if is_transient(error) and not outage.is_over and self._away_since_s is None:
            self._away_since_s = self._now_s()
            self._warn(
                f"Redis does not answer: {_error_text(error)}; waiting for it for up to {self._limit_s:g} s"
            )
        self._waiting_calls += 1
        try:
            while is_transient(error) and not outage.is_over:
                began_s = self._now_s()
                pause_s = outage.next_pause_s()
                await self._sleep(pause_s)
                woke_s = self._now_s()
                outage.add(woke_s - began_s, pause_s + MAX_DELAY_S)
                try:
                    reply = await function(*args, **named)
                except (RedisError, OSError) as caught:
                    error = caught
                    outage.add(self._now_s() - woke_s, MAX_CALL_S)
                else:
                    self._warn_of_recovery()
                    return reply
        finally:
            self._waiting_calls -= 1
            if not self._waiting_calls:
                self._away_since_s = None
        if not is_transient(error):
            raise error
        raise FleetUnreachableError(_outage_text(error, self._limit_s)) from error

    def _warn_of_recovery(self) -> None:
        if self._away_since_s is not None:
            away_s = self._now_s() - self._away_since_s
            self._away_since_s = None
            self._warn(f"Redis answers again after {away_s:.1f} s")


class RedisCaller(Protocol):
    """A function that awaits a call to Redis, repeats it if Redis does not answer, and returns its reply."""

    async def __call__(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **named: P.kwargs) -> T:
        """Call the function once or more; it must be safe to repeat."""


async def call_once(function: Callable[P, Awaitable[T]], /, *args: P.args, **named: P.kwargs) -> T:
    """Call the function without repeating it: the RedisCaller of callers with retries of their own."""
    return await function(*args, **named)


def _outage_text(error: Exception, limit_s: float) -> str:
    for_s = f" for {limit_s:g} s" if limit_s else ""
    return f"Redis has not answered{for_s}: {_error_text(error)}"


def _error_text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
