"""TLS contexts by policy: the trusted CAs, and the client certificate.

Contexts with TLS keys of the policy are created at startup. The default context is created for the first
https host: OpenSSL takes tens of milliseconds to read the CAs of the system. (truststore would take 17 ms at
each handshake.)
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
"""The CA bundles of Linux distributions, for a Python whose OpenSSL has other default paths."""


class TlsContexts:
    """The TLS contexts of a policy file."""

    def __init__(self, policy: Policy) -> None:
        """Create the contexts other than the default. Raises PolicyError, which names table, key and file."""
        self._contexts: dict[tuple[Tls, bool], ssl.SSLContext] = {}
        """The contexts, by TLS settings and whether HTTP/2 is offered."""
        for table, lane in policy.named():
            if lane.tls != Tls():
                for http2 in (False, True):
                    self._make(table, lane.tls, http2=http2)

    def for_policy(self, policy: LanePolicy, *, http2: bool = False) -> ssl.SSLContext:
        """Return the context of a lane, with or without HTTP/2. Overrides at run time do not change it."""
        context = self._contexts.get((policy.tls, http2))
        # Only the default context, which names no file, may be missing.
        return context or self._make("default", policy.tls, http2=http2)

    def _make(self, table: str, tls: Tls, *, http2: bool) -> ssl.SSLContext:
        context = self._contexts.get((tls, http2))
        if context is None:
            context = self._contexts[tls, http2] = _context(table, tls)
            context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        return context


def check(policy: Policy) -> None:
    """Raise PolicyError if a TLS file of the policy is unusable."""
    checked = {Tls()}
    for table, lane in policy.named():
        if lane.tls not in checked:
            _context(table, lane.tls)
            checked.add(lane.tls)


def _context(table: str, tls: Tls) -> ssl.SSLContext:
    """Return a new context of at least TLS 1.2 (RFC 8996), whatever the system's configuration allows.

    table: of the policy file, for errors. Raises PolicyError.
    """
    if not tls.verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif tls.ca_file:
        with _named(table, "ca_file", tls.ca_file, "holds no certificate in PEM"):
            context = ssl.create_default_context(cafile=tls.ca_file)
    else:
        paths, bundle = ssl.get_default_verify_paths(), None
        if not paths.cafile and not (paths.capath and any(Path(paths.capath).glob("*.0"))):
            bundle = next((path for path in _SYSTEM_BUNDLES if Path(path).is_file()), None)
        context = ssl.create_default_context(cafile=bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_cert:

        def no_passphrase() -> str:
            """Raise PolicyError: without a callback, OpenSSL would prompt on the terminal."""
            raise PolicyError(
                "is encrypted with a passphrase, which is not supported; decrypt it: openssl pkey -in KEY"
            )

        key = tls.client_key or tls.client_cert
        with _named(table, "client_cert", tls.client_cert, ""):
            if b"CERTIFICATE-----" not in Path(tls.client_cert).read_bytes():
                raise PolicyError("holds no certificate in PEM")
        with _named(table, "client_key", key, "is not a private key in PEM, or not the one of client_cert"):
            Path(key).read_bytes()
            context.load_cert_chain(tls.client_cert, key, password=no_passphrase)
    return context


@contextmanager
def _named(table: str, key: str, path: str, invalid: str) -> Iterator[None]:
    """Turn an error in the block into a PolicyError that names table, key and file.

    invalid: the text after the path if OpenSSL cannot read the file.
    """
    try:
        yield
    except ssl.SSLError as error:
        raise PolicyError(f"[{table}] {key}: {path} {invalid} ({error.reason or error})") from None
    except OSError as error:
        raise PolicyError(f"[{table}] {key}: {path}: {error.strerror}") from None
    except PolicyError as error:
        raise PolicyError(f"[{table}] {key}: {path} {error}") from None
