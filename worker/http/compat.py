"""Private names of httpx and h2, all in this module. It imports neither: few workers need both.

tests/unit/http/test_compat.py fails when a new release of a library renames one.
"""

from typing import Any


def set_cookies(client: Any, cookies: Any) -> None:
    """Use this very object: the public setter would copy it into a plain cookie jar.

    A jar with a policy that refuses all cookies would work, but parses each response to find them.
    """
    client._cookies = cookies  # noqa: SLF001


def skip_content_length_check(stream: Any) -> None:
    """Let h2 ignore the Content-Length of this response, which the caller checks.

    h2 would end the whole connection on a mismatch, and has no setting for it; RFC 9113 §8.1.1 ends the
    stream alone.
    """

    def ignore(_headers: Any) -> None:
        """Expect no length."""

    stream._initialize_content_length = ignore  # noqa: SLF001
