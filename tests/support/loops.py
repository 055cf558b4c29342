"""Tests on both event loops: workers run on uvloop, a program that embeds one on whatever loop it has."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test on asyncio's loop and on uvloop."""

    @functools.wraps(test)
    def runs(run: Callable[..., None], **given: Any) -> None:
        run(test(**given))

    takes = inspect.signature(test)
    run = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY)
    runs.__signature__ = takes.replace(parameters=[*takes.parameters.values(), run])  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize(
        "run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"]
    )(runs)
    return both
