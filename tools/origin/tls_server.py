"""Serve files over TLS on many loopback hosts, with certificates of a new CA."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.origin.certificates import HAS_OPENSSL, RSA, Authority
from tools.origin.static_server import serve_nginx

TLS_INSTALLED = HAS_OPENSSL and shutil.which("nginx") is not None
HOSTS_PER_CERTIFICATE = 50
"""The number of names in a certificate: they add 1 KB. All names would cost more than the handshake."""


@contextmanager
def serve_tls(served: Path, hosts: list[str], folder: Path) -> Iterator[tuple[list[str], Path]]:
    """Serve a folder on every host; yield the URL of each host, and the path of the CA certificate."""
    folder.mkdir()
    authority = Authority(folder, keys=RSA)
    servers = []
    for start in range(0, len(hosts), HOSTS_PER_CERTIFICATE):
        named = hosts[start : start + HOSTS_PER_CERTIFICATE]
        files = authority.issue(f"hosts-{start}", *(f"IP:{host}" for host in named))
        listens = " ".join(f"listen {host}:{{port}} ssl;" for host in named)
        options = f'ssl_certificate "{files.cert}"; ssl_certificate_key "{files.key}"; root "{served}";'
        servers.append(f"server {{ {listens} {options} }}")
    with serve_nginx("\n".join(servers), hosts, folder) as port:
        yield [f"https://{host}:{port}" for host in hosts], authority.cert
