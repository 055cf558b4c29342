"""HTTP/2 by policy, against nginx with TLS."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchfleet import Fleet, Outcome, Reason
from tests.support.waiting import wait_until
from tests.support.workers import QUICK_POLICY, workers
from tools.origin.static_server import serve_nginx

HTTP2, HTTP1 = "127.0.0.171", "127.0.0.172"

SERVERS = f"""
    log_format protocols '$server_addr $server_protocol $status';
    server {{
        listen {HTTP2}:{{port}} ssl http2;
        listen {HTTP1}:{{port}} ssl http2;
        ssl_certificate cert.pem;
        ssl_certificate_key key.pem;
        access_log protocols.log protocols;
        location / {{ return 200 "over $server_protocol"; }}
    }}
"""

needs_nginx = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx and openssl"
)


def make_certificate(folder: Path) -> None:
    """Make a self-signed certificate for both addresses."""
    names = f"subjectAltName=IP:{HTTP2},IP:{HTTP1}"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=test", "-addext", names]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tls_nginx(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Yield the port of nginx, and its folder with protocols.log and cert.pem."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    make_certificate(folder)
    with serve_nginx(SERVERS, [HTTP2, HTTP1], folder) as port:
        yield port, folder


@needs_nginx
async def test_http2_is_used_only_for_hosts_whose_policy_enables_it(
    tls_nginx: tuple[int, Path],
    redis_url: str,
    fleet: Fleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both hosts offer it. The log of nginx has the protocol of each request."""
    port, folder = tls_nginx
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    policy = QUICK_POLICY + f'[host."{HTTP2}"]\nhttp2 = true\n'
    with workers(1, redis_url, tmp_path / "fleet", policy):
        urls = [f"https://{host}:{port}/{i}" for host in (HTTP2, HTTP1) for i in range(20)]
        batch = await fleet.submit(urls)
        results = [result async for result in batch.results()]

    def logged() -> list[str]:
        return (folder / "protocols.log").read_text().splitlines()

    await wait_until(lambda: len(logged()) == len(urls), "nginx to write its log")
    assert {Outcome.STORED} == {result.outcome for result in results}
    assert {f"{HTTP2} HTTP/2.0 200", f"{HTTP1} HTTP/1.1 200"} == set(logged())


@needs_nginx
async def test_a_self_signed_certificate_is_refused_without_a_retry(
    tls_nginx: tuple[int, Path], redis_url: str, fleet: Fleet, tmp_path: Path
) -> None:
    """The fetch fails with `tls` after one attempt, and nginx receives no request."""
    port, folder = tls_nginx
    with workers(1, redis_url, tmp_path / "fleet"):
        batch = await fleet.submit([f"https://{HTTP1}:{port}/"])
        results = [result async for result in batch.results()]

    assert [(Reason.TLS, 1)] == [(result.reason, result.attempts) for result in results]
    assert "" == (folder / "protocols.log").read_text()
