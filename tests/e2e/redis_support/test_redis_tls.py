"""A fleet on a Redis that accepts only TLS and requires a password of each user."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from fetchfleet import Fleet, Outcome
from tests.support import guarded_redis
from tests.support.guarded_redis import GuardedRedis, serve_guarded
from tests.support.workers import fetchfleet, workers
from tools.origin import behaviours as o
from tools.origin.certificates import HAS_OPENSSL, Authority
from tools.origin.server import Origin

NAMED, UNNAMED = "127.0.0.173", "127.0.0.174"

WHY_NOT = (
    guarded_redis.acl_skip_reason()
    or guarded_redis.tls_skip_reason()
    or (None if HAS_OPENSSL else "needs the openssl command")
)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


class TlsRedis(NamedTuple):
    """A Redis on NAMED and UNNAMED; its certificate is for NAMED."""

    guarded: GuardedRedis
    port: int
    folder: Path

    def url(self, user: str, host: str = NAMED, **parameters: str) -> str:
        """Return the URL of a user, which trusts the CA unless the parameters differ."""
        given = {"ssl_ca_certs": str(self.folder / "ca.pem"), **parameters}
        return self.guarded.over_tls(user, host, self.port, **given)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, certificates of Redis and of a client, and another CA."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = Authority(folder)
    ca.issue("redis", f"IP:{NAMED}")
    ca.issue("client", "DNS:client")
    Authority(folder, "other")
    return folder


@pytest.fixture
def serve(certificates: Path) -> Iterator[Callable[[str], TlsRedis]]:
    """Start a Redis; `tls-auth-clients` determines whether it requires client certificates."""
    with ExitStack() as stack:

        def serve(auth_clients: str) -> TlsRedis:
            port = free_port()
            options = {"tls_port": str(port), "bind": f"{NAMED} {UNNAMED}", "tls_auth_clients": auth_clients}
            files = {"tls_cert_file": "redis.pem", "tls_key_file": "redis.key", "tls_ca_cert_file": "ca.pem"}
            options |= {name: str(certificates / file) for name, file in files.items()}
            return TlsRedis(stack.enter_context(serve_guarded(**options)), port, certificates)

        yield serve


@pytest.fixture
def tls(serve: Callable[[str], TlsRedis]) -> TlsRedis:
    """A Redis that requires no client certificate."""
    return serve("no")


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as place:
        place.bind((NAMED, 0))
        return int(place.getsockname()[1])


def wrong_host(tls: TlsRedis) -> str:
    """Return a URL with an address that is not in the certificate."""
    return tls.url("worker", UNNAMED)


def wrong_authority(tls: TlsRedis) -> str:
    """Return a URL with another CA than that of the certificate."""
    return tls.url("worker", ssl_ca_certs=str(tls.folder / "other.pem"))


def no_authority(tls: TlsRedis) -> str:
    """Return a URL with the system's CAs, which do not include that of the certificate."""
    return tls.guarded.over_tls("worker", NAMED, tls.port)


def no_tls(tls: TlsRedis) -> str:
    """Return a URL for plain TCP to the TLS port."""
    return no_authority(tls).replace("rediss:", "redis:")


WRONG = [
    (wrong_host, "IP address mismatch"),
    (wrong_authority, "certificate verify failed"),
    (no_authority, "add ssl_ca_certs=/path/ca.pem to the URL"),
    (no_tls, "if the server expects TLS, use rediss://"),
]


async def test_a_fleet_works_over_tls(tls: TlsRedis, tmp_path: Path) -> None:
    """Producer and worker connect as their own users and trust the CA."""
    async with Origin.serving("127.0.0.175", o.OK) as origin, Fleet(tls.url("producer")) as fleet:
        with workers(1, tls.url("worker"), tmp_path / "fleet"):
            batch = await fleet.submit([origin.url(f"/{i}") for i in range(20)])
            outcomes = [result.outcome async for result in batch.results()]

    assert [Outcome.STORED] * 20 == outcomes
    assert set() == tls.guarded.refused()


async def test_a_client_certificate_is_sent_to_a_redis_that_requires_one(
    serve: Callable[[str], TlsRedis],
) -> None:
    """The URL has redis-py's parameters. Without them Redis closes the connection."""
    tls = serve("yes")
    ours = {
        "ssl_certfile": str(tls.folder / "client.pem"),
        "ssl_keyfile": str(tls.folder / "client.key"),
    }
    async with Fleet(tls.url("producer", **ours)) as fleet:
        assert [] == await fleet.batches()
    async with Fleet(tls.url("producer"), redis_patience_s=0) as fleet:
        with pytest.raises(RedisConnectionError):
            await fleet.batches()


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_worker_reports_the_cause_of_a_tls_failure(
    tls: TlsRedis, tmp_path: Path, wrong: Callable[[TlsRedis], str], message: str
) -> None:
    """The worker exits with code 1 and prints one line without the password."""
    ended = fetchfleet("worker", "--out", tmp_path, FETCHFLEET_REDIS_URL=wrong(tls))
    assert (1, "", 1) == (ended.returncode, ended.stdout, len(ended.stderr.splitlines()))
    assert message in ended.stderr
    assert tls.guarded.password("worker") not in ended.stderr


@pytest.mark.parametrize(("wrong", "message"), WRONG[:2])
async def test_a_producer_gets_an_error_with_the_cause_of_a_tls_failure(
    tls: TlsRedis, wrong: Callable[[TlsRedis], str], message: str
) -> None:
    """No command is sent to a server whose certificate does not verify."""
    async with Fleet(wrong(tls)) as fleet:
        with pytest.raises(RedisConnectionError, match=message):
            await fleet.submit(["http://a.example/"])
