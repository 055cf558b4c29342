"""Certificates for tests, signed by a test CA."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HAS_OPENSSL = shutil.which("openssl") is not None

P256 = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
"""The default: an RSA key takes half a second of CPU."""
RSA = ("rsa:2048",)

_CA_CONFIG = """
[ca]
default_ca = test
[test]
database = index.txt
new_certs_dir = .
default_md = sha256
policy = any
rand_serial = yes
[any]
commonName = supplied
"""


class Certificate(NamedTuple):
    """The files of a certificate."""

    cert: Path
    key: Path


class Authority:
    """A CA with its files in `folder`. keys: arguments of openssl for the keys of it and its certificates."""

    def __init__(self, folder: Path, name: str = "ca", keys: Sequence[str] = P256) -> None:
        self._folder = folder
        self._name = name
        self._keys = keys
        # Python 3.13 checks RFC 5280 strictly: a CA certificate needs keyUsage.
        use = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        self._openssl("req", "-x509", *self._new(name), *use, "-days", "2")
        self.cert = folder / f"{name}.pem"

    def issue(self, name: str, *names: str) -> Certificate:
        """Issue a certificate for names such as IP:127.0.0.1 or DNS:localhost."""
        request = self._signing_request(name, *names)
        ca = ["-CA", f"{self._name}.pem", "-CAkey", f"{self._name}.key", "-CAcreateserial"]
        self._openssl("x509", "-req", *request, *ca, "-days", "2")
        return self._files(name)

    def issue_expired(self, name: str, *names: str) -> Certificate:
        """Issue a certificate that expired years ago."""
        request = self._signing_request(name, *names)
        (self._folder / "index.txt").touch()
        (self._folder / "ca.cnf").write_text(_CA_CONFIG)
        ca = ["-cert", f"{self._name}.pem", "-keyfile", f"{self._name}.key", "-config", "ca.cnf", "-batch"]
        self._openssl("ca", *request, *ca, "-startdate", "20200101000000Z", "-enddate", "20200102000000Z")
        return self._files(name)

    def _signing_request(self, name: str, *names: str) -> list[str]:
        """Create a signing request; return the openssl arguments for it."""
        self._openssl("req", *self._new(name, "csr"))
        extensions = f"subjectAltName={','.join(names)}\nauthorityKeyIdentifier=keyid\n"
        (self._folder / f"{name}.ext").write_text(extensions)
        return ["-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", f"{name}.ext"]

    def _files(self, name: str) -> Certificate:
        return Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _new(self, name: str, kind: str = "pem") -> list[str]:
        key = ["-newkey", *self._keys, "-nodes", "-keyout", f"{name}.key"]
        return [*key, "-out", f"{name}.{kind}", "-subj", f"/CN={name}"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
