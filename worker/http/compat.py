"""Private names of the libraries below, all in this module.

tests/unit/http/test_compat.py fails when a new release of a library renames one.
"""

from typing import Any

import h2.stream
import httpx


def set_cookies(client: httpx.AsyncClient, cookies: httpx.Cookies) -> None:
    """Use this very object: the public setter would copy it into a plain cookie jar.

    A jar with a policy that refuses all cookies would work, but parses each response to find them.
    """
    client._cookies = cookies  # noqa: SLF001


def skip_content_length_check(stream: h2.stream.H2Stream) -> None:
    """Let h2 ignore the Content-Length of this response, which the caller checks.

    h2 would end the whole connection on a mismatch, and has no setting for it; RFC 9113 §8.1.1 ends the
    stream alone.
    """

    def ignore(_headers: Any) -> None:
        """Expect no length."""

    stream._initialize_content_length = ignore  # type: ignore[assignment,method-assign]  # noqa: SLF001
