"""Whom hosts must show themselves to be, and how we show ourselves: one TLS context for all that ask alike.

A context takes tens of milliseconds to make, so all are made at the start, from the policy file. What the
system trusts is read by OpenSSL itself, once a context. (truststore does the same on Linux, but at each
handshake anew: 17 ms of it.)
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError, Tls

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
"""Where systems keep whom they trust, for a Python whose OpenSSL was built to look elsewhere."""


class Contexts:
    """The contexts of a policy file."""

    def __init__(self, policy: Policy) -> None:
        """Raises PolicyError, which names table, key and file."""
        # ALPN is set on the context, so the two kinds of pool must not share one.
        self._made: dict[tuple[Tls, bool], ssl.SSLContext] = {}
        for where, lane in policy.named():
            if (lane.tls, False) not in self._made:
                for http2 in (False, True):
                    self._made[lane.tls, http2] = _context(where, lane.tls)

    def of(self, policy: LanePolicy) -> ssl.SSLContext:
        """That of the lane; what a table at run time changes needs no other."""
        return self._made[policy.tls, policy.http2]


def check(policy: Policy) -> None:
    """PolicyError where a file that the policy names cannot be used."""
    seen = {Tls()}
    for where, lane in policy.named():
        if lane.tls not in seen:
            _context(where, lane.tls)
            seen.add(lane.tls)


def _context(where: str, tls: Tls) -> ssl.SSLContext:
    """Its least version is TLS 1.2 (RFC 8996), whatever the system's configuration allows."""
    context = _trusting(where, tls)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_cert:
        _show(where, tls, context)
    return context


def _trusting(where: str, tls: Tls) -> ssl.SSLContext:
    if not tls.verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    if not tls.ca_file:
        return ssl.create_default_context(cafile=_bundle())
    with _named(where, "ca_file", tls.ca_file, "holds no certificate in PEM"):
        return ssl.create_default_context(cafile=tls.ca_file)


def _show(where: str, tls: Tls, context: ssl.SSLContext) -> None:
    """The context shows our certificate to hosts that ask for one."""
    key = tls.client_key or tls.client_cert
    with _named(where, "client_cert", tls.client_cert, ""):
        if b"CERTIFICATE-----" not in Path(tls.client_cert).read_bytes():
            raise PolicyError("holds no certificate in PEM")
    with _named(where, "client_key", key, "is no private key in PEM, or not the one of client_cert"):
        Path(key).read_bytes()
        context.load_cert_chain(tls.client_cert, key, password=_no_passphrase)


def _no_passphrase() -> str:
    """Without this OpenSSL would ask on the terminal."""
    raise PolicyError("is locked by a passphrase, which is not supported; unlock it: openssl pkey -in KEY")


@contextmanager
def _named(where: str, key: str, path: str, no_pem: str) -> Iterator[None]:
    """For what is done with a file: what is wrong with it is a PolicyError that names it."""
    try:
        yield
    except ssl.SSLError as error:
        raise PolicyError(f"[{where}] {key}: {path} {no_pem} ({error.reason or error})") from None
    except OSError as error:
        raise PolicyError(f"[{where}] {key}: {path}: {error.strerror}") from None
    except PolicyError as error:
        raise PolicyError(f"[{where}] {key}: {path} {error}") from None


def _bundle() -> str | None:
    """The file of whom the system trusts where OpenSSL itself would find none; else None."""
    found = ssl.get_default_verify_paths()
    if found.cafile or (found.capath and any(Path(found.capath).glob("*.0"))):
        return None
    return next((path for path in _BUNDLES if Path(path).is_file()), None)
