"""TLS contexts by policy: which CAs are trusted, and which client certificate is sent.

Those whose files the policy names are made at startup, the others when a host first needs one: OpenSSL takes
tens of milliseconds to read the CAs of the system. (truststore takes 17 ms at each handshake.)
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError, Tls

_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
"""The CA bundles of Linux distributions, for a Python whose OpenSSL looks elsewhere."""


class TlsContexts:
    """The contexts of a policy file."""

    def __init__(self, policy: Policy) -> None:
        """Make them; raises PolicyError, which names table, key and file."""
        self._made: dict[tuple[Tls, bool], ssl.SSLContext] = {}
        for where, lane in policy.named():
            if lane.tls != Tls():
                for http2 in (False, True):
                    self._make(where, lane.tls, http2=http2)

    def for_policy(self, policy: LanePolicy, *, http2: bool = False) -> ssl.SSLContext:
        """Return the context of a lane, with or without HTTP/2. Overrides at run time do not change it."""
        made = self._made.get((policy.tls, http2))
        return made or self._make("default", policy.tls, http2=http2)  # it names no file

    def _make(self, where: str, tls: Tls, *, http2: bool) -> ssl.SSLContext:
        made = self._made.get((tls, http2))
        if made is None:
            made = self._made[tls, http2] = _context(where, tls)
            made.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        return made


def check(policy: Policy) -> None:
    """Raise PolicyError if a file that the policy names cannot be used."""
    seen = {Tls()}
    for where, lane in policy.named():
        if lane.tls not in seen:
            _context(where, lane.tls)
            seen.add(lane.tls)


def _context(where: str, tls: Tls) -> ssl.SSLContext:
    """Make a context of at least TLS 1.2 (RFC 8996), whatever the system's configuration allows."""
    if not tls.verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif tls.ca_file:
        with _named(where, "ca_file", tls.ca_file, "holds no certificate in PEM"):
            context = ssl.create_default_context(cafile=tls.ca_file)
    else:
        known, bundle = ssl.get_default_verify_paths(), None
        if not known.cafile and not (known.capath and any(Path(known.capath).glob("*.0"))):
            bundle = next((path for path in _SYSTEM_BUNDLES if Path(path).is_file()), None)
        context = ssl.create_default_context(cafile=bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_cert:

        def no_passphrase() -> str:
            """Without this, OpenSSL would ask on the terminal."""
            raise PolicyError(
                "is locked by a passphrase, which is not supported; unlock it: openssl pkey -in KEY"
            )

        key = tls.client_key or tls.client_cert
        with _named(where, "client_cert", tls.client_cert, ""):
            if b"CERTIFICATE-----" not in Path(tls.client_cert).read_bytes():
                raise PolicyError("holds no certificate in PEM")
        with _named(where, "client_key", key, "is no private key in PEM, or not the one of client_cert"):
            Path(key).read_bytes()
            context.load_cert_chain(tls.client_cert, key, password=no_passphrase)
    return context


@contextmanager
def _named(where: str, key: str, path: str, no_pem: str) -> Iterator[None]:
    """Turn an error in the block into a PolicyError that names table, key and file."""
    try:
        yield
    except ssl.SSLError as error:
        raise PolicyError(f"[{where}] {key}: {path} {no_pem} ({error.reason or error})") from None
    except OSError as error:
        raise PolicyError(f"[{where}] {key}: {path}: {error.strerror}") from None
    except PolicyError as error:
        raise PolicyError(f"[{where}] {key}: {path} {error}") from None
