"""The files that a policy names for TLS: what is wrong with them is said before anything is fetched."""

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
    """Files of all kinds."""
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
    ({"client_cert": "one.pem"}, "client_key: one.pem is no private key in PEM"),
    ({"client_cert": "one.pem", "client_key": "two.key"}, "client_key: two.key is no private key"),
    ({"client_cert": "text.pem", "client_key": "one.key"}, "client_cert: text.pem holds no certificate"),
    (
        {"client_cert": "one.pem", "client_key": "locked.key"},
        "client_key: locked.key is locked by a passphrase",
    ),
    ({"client_cert": "both-locked.pem"}, "client_key: both-locked.pem is locked by a passphrase"),
]


@pytest.mark.parametrize(("table", "said"), BAD)
def test_a_file_that_cannot_be_used_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, str], said: str
) -> None:
    """With its table and key; and nobody is asked for a passphrase on a terminal."""
    monkeypatch.chdir(folder)
    for use in (check, TlsContexts):
        with pytest.raises(PolicyError) as caught:
            use(Policy(tables={"a.example": table}))
        assert str(caught.value).startswith(f"[{NAME}] {said}")


@pytest.mark.parametrize(
    "table",
    [
        {"ca_file": "ca.pem"},
        {"client_cert": "one.pem", "client_key": "one.key"},
        {"verify": False},
        {"verify": False, "client_cert": "one.pem", "client_key": "one.key"},
    ],
)
def test_no_context_speaks_less_than_tls_1_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    """Whatever else the policy says; and all but an explicit `verify = false` ask who is there."""
    monkeypatch.chdir(folder)
    policy = Policy(tables={"a.example": table})
    contexts = TlsContexts(policy)

    for lane in (policy.default, policy.for_lane("a.example")):
        made = contexts.for_policy(lane)
        assert made.minimum_version is ssl.TLSVersion.TLSv1_2
        assert (made.verify_mode is ssl.CERT_REQUIRED, made.check_hostname) == (lane.verify, lane.verify)


def test_those_that_trust_alike_have_one_context(folder: Path) -> None:
    """One for each protocol that is offered, however many hosts there are."""
    ca = f'ca_file = "{folder / "ca.pem"}"\n'
    policy = parse_policy("".join(f'[host."{n}.example"]\nburst = {n}\n{ca}' for n in range(1, 50)))
    contexts = TlsContexts(policy)

    assert len({contexts.for_policy(lane) for _, lane in policy.named()}) == 2


def test_where_openssl_would_look_in_vain_the_systems_file_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python may have been built to look elsewhere than its system does."""
    monkeypatch.setenv("SSL_CERT_FILE", "/none")
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setattr(tls_contexts, "_SYSTEM_BUNDLES", ("/none", str(folder / "ca.pem")))
    assert ssl.get_default_verify_paths().cafile is None

    [ca] = TlsContexts(Policy()).for_policy(Policy().default).get_ca_certs()
    assert ca["subject"] == ((("commonName", "ca"),),)


@pytest.mark.parametrize("command", ["worker", "run"])
def test_a_worker_does_not_start_without_its_files(folder: Path, tmp_path: Path, command: str) -> None:
    """It says which is missing and ends with 2: bad use."""
    (tmp_path / "policy.toml").write_text(f'[{NAME}]\nca_file = "{folder}/none.pem"\n')
    (tmp_path / "urls.txt").write_text("https://a.example/\n")
    urls = [tmp_path / "urls.txt"] if command == "run" else []
    ended = fetchfleet(command, *urls, "--out", tmp_path / "out", "--policy", tmp_path / "policy.toml")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"--policy: [{NAME}] ca_file: {folder}/none.pem: No such file or directory\n"


def test_who_only_looks_needs_no_files(tmp_path: Path, redis_url: str) -> None:
    """The workers' policy may be read where their files are not."""
    (tmp_path / "policy.toml").write_text(f'[{NAME}]\nca_file = "/none.pem"\n')
    ended = fetchfleet(
        *("policy", "show", "a.example", "--redis", redis_url, "--policy", tmp_path / "policy.toml")
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert '"/none.pem"' in ended.stdout
