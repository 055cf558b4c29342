"""Fixtures of the tests of the console."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.console import console


@pytest.fixture
async def local(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server without a token."""
    async with console(redis_url) as client:
        yield client
