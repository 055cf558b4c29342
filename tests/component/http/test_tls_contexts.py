"""The TLS files of a policy: errors are reported before anything is fetched."""

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fetchfleet.worker.http.net import tls_contexts
from fetchfleet.worker.http.net.tls_contexts import TlsContexts, check
from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.model import PolicyError
from tests.support.workers import fetchfleet
from tools.origin.certificates import HAS_OPENSSL, Authority

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="needs the openssl command")

NAME = 'host."a.example"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CA, certificates, keys, a locked key and a text file."""
    made = tmp_path_factory.mktemp("trust")
    ca = Authority(made)
    ca.issue("one", "DNS:one")
    ca.issue("two", "DNS:two")
    (made / "text.pem").write_text("no PEM at all")
    locked = ["openssl", "pkey", "-in", "one.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key"]
    subprocess.run(locked, cwd=made, check=True, capture_output=True)
    (made / "both-locked.pem").write_bytes(
        (made / "one.pem").read_bytes() + (made / "locked.key").read_bytes()
    )
    return made


BAD = [
    ({"ca_file": "none.pem"}, "ca_file: none.pem: No such file"),
    ({"ca_file": "."}, "ca_file: .: Is a directory"),
    ({"ca_file": "text.pem"}, "ca_file: text.pem holds no certificate in PEM"),
    ({"client_cert": "none.pem"}, "client_cert: none.pem: No such file"),
    ({"client_cert": "one.pem", "client_key": "none.key"}, "client_key: none.key: No such file"),
    ({"client_cert": "one.pem"}, "client_key: one.pem is not a private key in PEM"),
    ({"client_cert": "one.pem", "client_key": "two.key"}, "client_key: two.key is not a private key"),
    ({"client_cert": "text.pem", "client_key": "one.key"}, "client_cert: text.pem holds no certificate"),
    (
        {"client_cert": "one.pem", "client_key": "locked.key"},
        "client_key: locked.key is encrypted with a passphrase",
    ),
    ({"client_cert": "both-locked.pem"}, "client_key: both-locked.pem is encrypted with a passphrase"),
]


@pytest.mark.parametrize(("table", "message"), BAD)
def test_an_unusable_tls_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, str], message: str
) -> None:
    """The error also names its table and key. A locked key does not prompt for a passphrase."""
    monkeypatch.chdir(folder)
    for use in (check, TlsContexts):
        with pytest.raises(PolicyError) as caught:
            use(Policy(tables={"a.example": table}))
        assert str(caught.value).startswith(f"[{NAME}] {message}")


@pytest.mark.parametrize(
    "table",
    [
        {"ca_file": "ca.pem"},
        {"client_cert": "one.pem", "client_key": "one.key"},
        {"verify": False},
        {"verify": False, "client_cert": "one.pem", "client_key": "one.key"},
    ],
)
def test_every_context_requires_tls_1_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    """Only an explicit `verify = false` switches verification off."""
    monkeypatch.chdir(folder)
    policy = Policy(tables={"a.example": table})
    contexts = TlsContexts(policy)

    for lane in (policy.default, policy.for_lane("a.example")):
        made = contexts.for_policy(lane)
        assert made.minimum_version is ssl.TLSVersion.TLSv1_2
        assert (made.verify_mode is ssl.CERT_REQUIRED, made.check_hostname) == (lane.verify, lane.verify)


def test_hosts_with_equal_trust_share_a_context(folder: Path) -> None:
    """49 hosts with one CA file need one context besides the default."""
    ca = f'ca_file = "{folder / "ca.pem"}"\n'
    policy = parse_policy("".join(f'[host."{n}.example"]\nburst = {n}\n{ca}' for n in range(1, 50)))
    contexts = TlsContexts(policy)

    assert len({contexts.for_policy(lane) for _, lane in policy.named()}) == 2


def test_the_system_bundle_is_found_if_the_default_file_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python may have been built with other paths than its system has."""
    monkeypatch.setenv("SSL_CERT_FILE", "/none")
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setattr(tls_contexts, "_SYSTEM_BUNDLES", ("/none", str(folder / "ca.pem")))
    assert ssl.get_default_verify_paths().cafile is None

    [ca] = TlsContexts(Policy()).for_policy(Policy().default).get_ca_certs()
    assert ca["subject"] == ((("commonName", "ca"),),)


@pytest.mark.parametrize("command", ["worker", "run"])
def test_a_worker_does_not_start_without_its_tls_files(folder: Path, tmp_path: Path, command: str) -> None:
    """The error names the missing file, and the exit code is 2 (bad usage)."""
    (tmp_path / "policy.toml").write_text(f'[{NAME}]\nca_file = "{folder}/none.pem"\n')
    (tmp_path / "urls.txt").write_text("https://a.example/\n")
    urls = [tmp_path / "urls.txt"] if command == "run" else []
    ended = fetchfleet(command, *urls, "--out", tmp_path / "out", "--policy", tmp_path / "policy.toml")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"--policy: [{NAME}] ca_file: {folder}/none.pem: No such file or directory\n"


def test_policy_show_needs_no_tls_files(tmp_path: Path, redis_url: str) -> None:
    """The policy of the workers can be read on a machine without their files."""
    (tmp_path / "policy.toml").write_text(f'[{NAME}]\nca_file = "/none.pem"\n')
    ended = fetchfleet(
        *("policy", "show", "a.example", "--redis", redis_url, "--policy", tmp_path / "policy.toml")
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert '"/none.pem"' in ended.stdout
