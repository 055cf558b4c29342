"""Run tests on both event loops: a worker uses uvloop, or the loop of the program that embeds it."""

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
    def run_test(run: Callable[..., None], **fixtures: Any) -> None:
        run(test(**fixtures))

    signature = inspect.signature(test)
    run = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY)
    run_test.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), run]
    )
    parametrized: Callable[..., None] = pytest.mark.parametrize(
        "run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"]
    )(run_test)
    return parametrized
