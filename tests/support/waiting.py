"""Wait for a condition instead of sleeping."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def wait_until(
    predicate: Callable[[], Awaitable[T]],
    what: str,
    timeout_s: float = ...,
    every_s: float = ...,
) -> T: ...
@overload
async def wait_until(
    predicate: Callable[[], T], what: str, timeout_s: float = ..., every_s: float = ...
) -> T: ...
async def wait_until(
    predicate: Callable[[], Any], what: str, timeout_s: float = 10.0, every_s: float = 0.02
) -> Any:
    """Return the first truthy value of the predicate.

    Raises AssertionError after the timeout: "waited 10 s for {what}".
    """
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await _first_truthy(predicate, every_s)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"waited {timeout_s} s for {what}") from None


async def _first_truthy(predicate: Callable[[], Any], every_s: float) -> Any:
    while not (value := await _value(predicate)):  # noqa: ASYNC110 - the predicate is arbitrary
        await asyncio.sleep(every_s)
    return value


async def _value(predicate: Callable[[], Any]) -> Any:
    value = predicate()
    return await value if inspect.isawaitable(value) else value
