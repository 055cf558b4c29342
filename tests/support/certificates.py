"""Certificates for a test, signed by a CA of its own making."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HAS_OPENSSL = shutil.which("openssl") is not None


class Certificate(NamedTuple):
    """The files of one."""

    cert: Path
    key: Path


class Authority:
    """A CA whose files are in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        # Python 3.13 checks by RFC 5280, strictly: a CA says what its key is for.
        use = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        self._openssl("req", "-x509", *self._new(name), *use, "-days", "2")
        self.cert = folder / f"{name}.pem"

    def issue(self, name: str, *names: str) -> Certificate:
        """A certificate for those names, such as IP:127.0.0.1 or DNS:localhost."""
        self._openssl("req", *self._new(name, "csr"))
        extensions = f"subjectAltName={','.join(names)}\nauthorityKeyIdentifier=keyid\n"
        (self._folder / f"{name}.ext").write_text(extensions)
        ca = ["-CA", f"{self._name}.pem", "-CAkey", f"{self._name}.key", "-CAcreateserial"]
        of = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", f"{name}.ext"]
        self._openssl("x509", "-req", *of, *ca, "-days", "2")
        return Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _new(self, name: str, kind: str = "pem") -> list[str]:
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key"]
        return [*key, "-out", f"{name}.{kind}", "-subj", f"/CN={name}"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
