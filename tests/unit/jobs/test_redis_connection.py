"""The Redis URLs that are accepted, and the messages for others."""

from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection

from fetchfleet import RedisSetupError
from fetchfleet.jobs.redis_connection import connection_pool

UNCHECKED = [
    "rediss://h/0?ssl_cert_reqs=none",
    "rediss://h/0?ssl_cert_reqs=optional",
    "rediss://h/0?ssl_cert_reqs=None",
    "rediss://h/0?ssl_check_hostname=false",
    "rediss://h/0?ssl_check_hostname=0",
    "REDISS://h/0?ssl_check_hostname=no",
]
CHECKED = [
    "rediss://h",
    "REDISS://h",
    "rediss://user:p%40ss@h:1/0",
    "rediss://h?ssl_cert_reqs=required",
    "rediss://h?ssl_check_hostname=true",
    "rediss://h?ssl_cert_reqs=&ssl_check_hostname=",
]
REFUSED = [
    ("redis://:hunter2/x@h", "percent-encoded"),
    ("redis://:1234/x@h", "percent-encoded"),
    ("redis://:1234?x@h", "percent-encoded"),
    ("redis://hunter2:1234#x@h", "percent-encoded"),
    ("redis://user:hunter2#x@h", "percent-encoded"),
    ("redis://[hunter2/", "percent-encoded"),
    ("redis://h:port", "percent-encoded"),
    ("redis://h/name", "percent-encoded"),
    ("http://hunter2@h", "percent-encoded"),
    ("hunter2", "percent-encoded"),
    ("redis://h?hunter2=x", "does not know"),
    ("redis://h?ssl_ca_certs=/ca.pem", "need rediss://"),
    ("unix:///run/redis.sock?ssl_cert_reqs=required", "need rediss://"),
    ("rediss://h?ssl_ciphers=aNULL", "other than ssl_ca_certs"),
    ("rediss://h?ssl_min_version=1", "other than ssl_ca_certs"),
    ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs /nowhere/ca.pem: No such file"),
    ("rediss://h?ssl_certfile=/me.pem", "belong together"),
    ("rediss://h?ssl_keyfile=/me.key", "belong together"),
    (f"unix:///{'x' * 107}", "a path of 108 bytes"),
    (f"unix:///{'%C3%BC' * 54}?db=1", "a path of 109 bytes"),
    ("rediss://h?ssl_certfile=/me.pem&ssl_keyfile=/me.key", "ssl_certfile /me.pem, ssl_keyfile /me.key: No"),
]


@pytest.mark.parametrize("url", UNCHECKED)
def test_a_url_that_asks_for_unchecked_tls_is_refused(url: str) -> None:
    """The error names the remedy."""
    with pytest.raises(RedisSetupError, match=r"certificate checks; .* ssl_ca_certs=/path/ca.pem"):
        connection_pool(url)


@pytest.mark.parametrize("url", CHECKED)
def test_tls_checks_the_certificate_and_the_host_name(url: str) -> None:
    """It holds with and without parameters of the URL."""
    pool = connection_pool(url)
    assert issubclass(pool.connection_class, SSLConnection)
    options = pool.connection_kwargs
    assert ("required", True) == (options["ssl_cert_reqs"], options["ssl_check_hostname"])


@pytest.mark.parametrize(("url", "message"), REFUSED)
def test_an_unusable_url_is_refused_and_not_quoted(url: str, message: str) -> None:
    """The fault is named, and a possible password is not shown."""
    with pytest.raises(RedisSetupError) as refused:
        connection_pool(url)
    assert message in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_a_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    """The error is raised before a connection is opened."""
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(RedisSetupError, match=r"ca\.pem: "):
        connection_pool(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://u:p%40%2f%23ss@h:1/2?socket_timeout=3",
        "redis://h/",
        "unix://u:p@/run/redis.sock?db=1",
        f"unix:///{'x' * 106}",
    ],
)
def test_other_urls_are_used_unchanged(url: str) -> None:
    """They need no TLS."""
    assert not issubclass(connection_pool(url).connection_class, SSLConnection)
