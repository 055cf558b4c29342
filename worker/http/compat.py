"""The only uses of private names of httpx and h2. The module imports neither: few workers need both.

tests/unit/http/test_compat.py fails if a release of a library renames one.
"""

from typing import Any


def set_cookies(client: Any, cookies: Any) -> None:
    """Set the client's cookies without a copy: the public setter would copy them into an httpx.Cookies.

    A cookie jar whose policy refuses all cookies would also work, but parses the headers of each response.
    """
    client._cookies = cookies  # noqa: SLF001


def skip_content_length_check(stream: Any) -> None:
    """Make h2 ignore the Content-Length of this response, which the caller checks.

    h2 has no setting for this, and ends the connection on a mismatch. RFC 9113 §8.1.1 requires the end of the
    stream only.
    """

    def ignore(_headers: Any) -> None:
        """Set no expected length."""

    stream._initialize_content_length = ignore  # noqa: SLF001
