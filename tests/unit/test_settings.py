"""The settings of a worker: flags over environment over defaults."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fetchfleet.worker.settings import Settings, SettingsError, load_settings

SECRET_URL = "redis://user:hunter2@redis.internal:6379/0"

ROWS: list[tuple[str, str, Any, str, Any, Any]] = [
    ("redis_url", "FETCHFLEET_REDIS_URL", "redis://f", "redis://e", "redis://f", "redis://e"),
    ("out", "FETCHFLEET_OUT", "f", "e", Path("f"), Path("e")),
    ("in_folder", "FETCHFLEET_IN", "/", "/proc", Path("/"), Path("/proc")),
    ("allow_net", "FETCHFLEET_ALLOW_NET", "10.0.0.0/8", "10.0.0.1/32", "10.0.0.0/8", "10.0.0.1/32"),
    ("deny_net", "FETCHFLEET_DENY_NET", "10.0.0.0/8", "10.0.0.1/32", "10.0.0.0/8", "10.0.0.1/32"),
    ("nameservers", "FETCHFLEET_NAMESERVERS", "10.0.0.1", "10.0.0.2:5", "10.0.0.1", "10.0.0.2:5"),
    ("user_agent", "FETCHFLEET_USER_AGENT", "f", "e", "f", "e"),
    ("max_in_flight", "FETCHFLEET_MAX_IN_FLIGHT", 7, "8", 7, 8),
    ("grace_s", "FETCHFLEET_GRACE_S", 0, "1.5", 0.0, 1.5),
    ("lease_s", "FETCHFLEET_LEASE_S", 2, "1", 2.0, 1.0),
    ("min_free_bytes", "FETCHFLEET_MIN_FREE_BYTES", 0, "5", 0, 5),
    ("sink", "FETCHFLEET_SINK", "warc", "warc", "warc", "warc"),
    ("warc_compression", "FETCHFLEET_WARC_COMPRESSION", "none", "none", "none", "none"),
    ("warc_revisit", "FETCHFLEET_WARC_REVISIT", "0", "0", False, False),
    ("warc_max_bytes", "FETCHFLEET_WARC_MAX_BYTES", 65536, "65537", 65536, 65537),
    ("warc_max_age_s", "FETCHFLEET_WARC_MAX_AGE_S", 1, "2.5", 1.0, 2.5),
    ("log_level", "FETCHFLEET_LOG_LEVEL", "debug", "debug", "debug", "debug"),
    ("log_schema", "FETCHFLEET_LOG_SCHEMA", "otel", "ecs", "otel", "ecs"),
    ("log_finished", "FETCHFLEET_LOG_FINISHED", "failed", "1/100", "failed", "1/100"),
    ("otel", "FETCHFLEET_OTEL", "all", "traced", "all", "traced"),
    ("worker_id", "FETCHFLEET_WORKER_ID", "f", "e", "f", "e"),
]

FAULTS: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"engine": "curl"}, {}, "--engine curl"),
    (
        {"engine": "reqwest"},
        {},
        "--engine reqwest: was removed: direct replaces it and needs no extra; use --engine direct",
    ),
    (
        {},
        {"FETCHFLEET_ENGINE": "reqwest"},
        "--engine reqwest: was removed: direct replaces it and needs no extra; use --engine direct",
    ),
    ({"redis_url": "http://h"}, {}, "not a Redis URL"),
    ({"allow_net": "10.0.0.0/99"}, {}, "10.0.0.0/99"),
    ({"deny_net": "10.0.0.0/99"}, {}, "denied network '10.0.0.0/99'"),
    ({}, {"FETCHFLEET_NAMESERVERS": "dns.example"}, "nameserver 'dns.example'"),
    ({"policy": "/nowhere/policy.toml"}, {}, "--policy /nowhere/policy.toml: No such file or directory"),
    ({"in_folder": "/nowhere"}, {}, "--in /nowhere"),
    ({}, {"FETCHFLEET_IN": "/dev/null"}, "--in /dev/null"),
    ({}, {"FETCHFLEET_MAX_IN_FLIGHT": "many"}, "FETCHFLEET_MAX_IN_FLIGHT: must be an integer, got 'many'"),
    ({}, {"FETCHFLEET_MAX_IN_FLIGHT": "1.5"}, "FETCHFLEET_MAX_IN_FLIGHT"),
    ({}, {"FETCHFLEET_MAX_IN_FLIGHT": "0"}, "FETCHFLEET_MAX_IN_FLIGHT"),
    ({}, {"FETCHFLEET_MAX_IN_FLIGHT": "100001"}, "FETCHFLEET_MAX_IN_FLIGHT"),
    ({}, {"FETCHFLEET_GRACE_S": "soon"}, "FETCHFLEET_GRACE_S: must be a number, got 'soon'"),
    ({}, {"FETCHFLEET_GRACE_S": "-0.1"}, "FETCHFLEET_GRACE_S"),
    ({}, {"FETCHFLEET_GRACE_S": "nan"}, "FETCHFLEET_GRACE_S"),
    ({}, {"FETCHFLEET_GRACE_S": "inf"}, "FETCHFLEET_GRACE_S"),
    ({}, {"FETCHFLEET_LEASE_S": "0.9"}, "FETCHFLEET_LEASE_S"),
    ({}, {"FETCHFLEET_LEASE_S": "nan"}, "FETCHFLEET_LEASE_S"),
    ({}, {"FETCHFLEET_LEASE_S": "inf"}, "FETCHFLEET_LEASE_S"),
    (
        {},
        {"FETCHFLEET_MIN_FREE_BYTES": "1 GiB"},
        "FETCHFLEET_MIN_FREE_BYTES: must be an integer, got '1 GiB'",
    ),
    ({}, {"FETCHFLEET_MIN_FREE_BYTES": "-1"}, "FETCHFLEET_MIN_FREE_BYTES"),
    ({"sink": "tape"}, {}, "--sink tape"),
    ({}, {"FETCHFLEET_WARC_REVISIT": "no"}, "FETCHFLEET_WARC_REVISIT: must be 1 or 0, got 'no'"),
    ({}, {"FETCHFLEET_WARC_COMPRESSION": "zstd"}, "--warc-compression zstd: choose gzip or none"),
    ({}, {"FETCHFLEET_WARC_MAX_BYTES": "65535"}, "FETCHFLEET_WARC_MAX_BYTES"),
    ({}, {"FETCHFLEET_WARC_MAX_AGE_S": "0.9"}, "FETCHFLEET_WARC_MAX_AGE_S"),
    ({}, {"FETCHFLEET_WARC_MAX_AGE_S": "nan"}, "FETCHFLEET_WARC_MAX_AGE_S"),
    ({}, {"FETCHFLEET_LOG_LEVEL": "DEBUG"}, "FETCHFLEET_LOG_LEVEL: must be debug or info, got 'DEBUG'"),
    (
        {},
        {"FETCHFLEET_LOG_SCHEMA": "OTel"},
        "FETCHFLEET_LOG_SCHEMA: must be native or otel or ecs, got 'OTel'",
    ),
    *(
        (
            {},
            {"FETCHFLEET_LOG_FINISHED": value},
            f"FETCHFLEET_LOG_FINISHED: must be all, failed, or 1/N as in 1/100, got {value!r}",
        )
        for value in ("none", "1/0", "2/3", "1/-1", "1/1000000000", "1/٣")
    ),
    ({}, {"FETCHFLEET_OTEL": "on"}, "FETCHFLEET_OTEL: must be off or traced or all, got 'on'"),
    ({"user_agent": "a\r\nb"}, {}, "FETCHFLEET_USER_AGENT"),
    ({"user_agent": "é"}, {}, "FETCHFLEET_USER_AGENT"),
]


def faults_of(flags: dict[str, Any], environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environment)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("name", "variable", "flag", "value", "by_flag", "by_environment"), ROWS)
def test_a_flag_wins_over_the_environment_and_that_over_the_default(
    name: str, variable: str, flag: Any, value: str, by_flag: Any, by_environment: Any
) -> None:
    """A flag of None counts as not given, and an empty variable as unset."""
    default = getattr(Settings(worker_id="w"), name)

    assert by_flag == getattr(load_settings({name: flag}, {variable: value}), name)
    assert by_environment == getattr(load_settings({name: None}, {variable: value}), name)
    assert name == "worker_id" or getattr(load_settings({}, {variable: ""}), name) == default


def test_a_worker_has_a_name_of_its_own_unless_it_is_given_one() -> None:
    """Its machine and its process."""
    name, _, process = load_settings({}, {}).worker_id.rpartition("-")

    assert name
    assert process.isdigit()


def test_the_policy_is_read_from_its_file(tmp_path: Path) -> None:
    """Named by flag or by environment."""
    (tmp_path / "policy.toml").write_text("[default]\nattempts = 9\n")
    path = str(tmp_path / "policy.toml")

    assert 9 == load_settings({"policy": path}, {}).policy.default.attempts
    assert 9 == load_settings({}, {"FETCHFLEET_POLICY": path}).policy.default.attempts
    assert 5 == load_settings({}, {}).policy.default.attempts


def test_a_policy_that_cannot_be_used_is_named_with_its_file(tmp_path: Path) -> None:
    """Bad TOML, a bad key, and bytes that are not text."""
    path = tmp_path / "policy.toml"
    for content in (b"x = [", b"[default]\nattempts = 0", b"\xff"):
        path.write_bytes(content)

        assert faults_of({"policy": str(path)}, {})[0].startswith(f"--policy {path}: ")


@pytest.mark.parametrize(("flags", "environment", "named"), FAULTS)
def test_an_invalid_setting_is_named(flags: dict[str, Any], environment: dict[str, str], named: str) -> None:
    """No other setting is named."""
    faults = faults_of(flags, environment)

    assert 1 == len(faults)
    assert named in faults[0]


def test_all_faults_are_named_at_once() -> None:
    """The error has one line for each fault of flags and environment."""
    flags = {"engine": "curl", "redis_url": "x", "allow_net": "x", "policy": "/nowhere", "user_agent": "é"}
    environment = {f"FETCHFLEET_{name}": "x" for name in ("MAX_IN_FLIGHT", "GRACE_S", "LEASE_S")}

    assert len(flags) + len(environment) == len(faults_of(flags, environment))


def test_keys_of_options_replace_those_of_the_policy_file(tmp_path: Path) -> None:
    """Tables of hosts stay above them. The digests of the two policies differ."""
    (tmp_path / "policy.toml").write_text("[default]\nattempts = 9\nburst = 2\n[host.a]\nattempts = 7\n")
    flags = {"policy": str(tmp_path / "policy.toml")}
    file = load_settings(flags, {}).policy
    policy = load_settings({**flags, "policy_keys": {"attempts": 3}}, {}).policy
    assert (policy.default.attempts, policy.default.burst, policy.for_lane("a").attempts) == (3, 2, 7)
    assert policy.default_table == {"attempts": 3, "burst": 2}
    assert policy.digest != file.digest

    alone = load_settings({"policy_keys": {"retry_base_s": 3600, "retry_cap_s": 7200}}, {}).policy
    assert alone.default_table == {"retry_base_s": 3600, "retry_cap_s": 7200}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"concurrency": 0}, "--concurrency: must be between 1 and 1000, got 0"),
        ({"rate_per_s": -1.0}, "--rate: must be 0 or between 0.00001 and 100000, got -1.0"),
        ({"attempts": "x"}, "--attempts: Expected `int`, got `str` - at `$.attempts`"),
        ({"rpbots": "obey"}, "--set: Object contains unknown field `rpbots`"),
        ({"client_cert": "x"}, "--set: client_cert: would be presented to every host"),
        (
            {"retry_base_s": 3600, "retry_cap_s": 1},
            "--set: retry_cap_s: must be at least retry_base_s, 3600, got 1",
        ),
    ],
)
def test_a_bad_key_names_its_option(keys: dict[str, Any], named: str) -> None:
    """The error has the value and the range."""
    faults = faults_of({"policy_keys": keys}, {})

    assert len(faults) == 1
    assert named in faults[0]


def test_a_key_of_an_option_that_contradicts_the_policy_file_names_the_option(tmp_path: Path) -> None:
    """A fault of the file alone names the file."""
    (tmp_path / "policy.toml").write_text("[default]\nretry_cap_s = 2\nburst = 0\n")
    path = str(tmp_path / "policy.toml")

    by_option, by_file = sorted(
        faults_of({"policy": path, "policy_keys": {"retry_base_s": 3}}, {}), reverse=True
    )
    assert by_option == "--set: retry_cap_s: must be at least retry_base_s, 3, got 2"
    assert by_file == f"--policy {path}: [default] burst: must be between 1 and 100000, got 0"


def test_the_redis_password_is_in_no_rendering_of_the_settings() -> None:
    """They end up in tracebacks, rich ones too."""
    settings, screen = load_settings({"redis_url": SECRET_URL}, {}), io.StringIO()
    Console(file=screen, width=500).print(settings)

    for shown in (repr(settings), str(settings), f"{settings}", screen.getvalue()):
        assert "redis.internal" in shown
        assert "hunter2" not in shown


def test_settings_cannot_be_changed() -> None:
    """They were checked when they were loaded."""
    with pytest.raises(AttributeError):
        Settings().lease_s = 1.0  # type: ignore[misc]


def test_an_in_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs before any fetch names a file in it."""
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)

    with pytest.raises(SettingsError, match=f"--in {tmp_path}: Permission denied"):
        load_settings({"in_folder": tmp_path}, {})


def test_spans_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    monkeypatch.setattr("fetchfleet.worker.settings.find_spec", lambda _: None)

    assert [] == [fault for fault in faults_of({"sink": "tape"}, {}) if "otel" in fault]
    assert "pip install 'fetchfleet[otel]'" in faults_of({}, {"FETCHFLEET_OTEL": "all"})[0]


def test_out_may_be_the_url_of_a_store_with_a_spool() -> None:
    """Then the out folder is the spool. The environment sets both too."""
    settings = load_settings({"out": "s3://bucket/a/", "spool": "/srv/spool"}, {})
    assert (settings.store, settings.out, settings.bodies) == (
        "s3://bucket/a",
        Path("/srv/spool"),
        "s3://bucket/a",
    )
    settings = load_settings({}, {"FETCHFLEET_OUT": "gs://bucket", "FETCHFLEET_STORE": "ignored"})
    assert (settings.store, settings.out, settings.sink_kind) == ("gs://bucket", Path("spool"), "objects")
    settings = load_settings({"out": "folder"}, {"FETCHFLEET_SPOOL": "unused"})
    assert (settings.store, settings.bodies, settings.sink_kind) == ("", "folder", "files")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"out": "s3://user:secret@bucket/x"}, "--out: has credentials"),
        ({"out": "https://bucket/x"}, "--out: https is not a store"),
        ({"spool": "folder"}, "--spool folder: needs a store"),
        ({"out": "s3://bucket/x", "sink": "warc"}, "--sink warc: writes segments to a folder"),
    ],
)
def test_settings_that_do_not_fit_a_store_are_refused(flags: dict[str, str], error: str) -> None:
    """No message has a secret."""
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, {})

    assert error in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_store_without_its_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command that installs it."""
    monkeypatch.setattr("fetchfleet.worker.settings.find_spec", lambda _: None)

    with pytest.raises(SettingsError, match=r"pip install 'fetchfleet\[objects\]'"):
        load_settings({"out": "s3://bucket/x"}, {})
