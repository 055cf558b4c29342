"""The settings of a worker: flags over environment variables over defaults, all checked at once."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.jobs.redis_connection import connection_pool, inbox_of
from fetchfleet.worker.observability.redact import url as redacted_url
from fetchfleet.worker.policy.egress import Egress
from fetchfleet.worker.policy.file import NO_KEYS, Policy, parse_policy
from fetchfleet.worker.policy.model import PolicyError, PolicyFault
from fetchfleet.worker.policy.names import DEFAULT
from fetchfleet.worker.policy.published import digest_of_bytes

HTTPX, DIRECT = "httpx", "direct"
ENGINES = (HTTPX, DIRECT)
REMOVED = {"reqwest": "was removed: direct replaces it and needs no extra; use --engine direct"}
"""Engines of earlier versions, and the remedy."""
FILES, WARC = "files", "warc"
SINKS = (FILES, WARC)
LOG_LEVELS = ("debug", "info")
VIAS = ("lanes", "inbox")
POLICY_KEYS = "policy_keys"
"""The flag that holds keys of the policy's default table, with their values."""
OPTIONS_OF_KEYS = {
    "concurrency": "--concurrency",
    "rate_per_s": "--rate",
    "attempts": "--attempts",
    "timeout": "--timeout",
    "max_bytes": "--max-bytes",
}
"""The options for keys that everybody sets; `--set KEY=VALUE` sets any."""


class SettingsError(ValueError):
    """Settings that cannot be used; the message has one line for each, with its remedy."""


NO_POLICY = Policy()
"""The policy without a policy file: the defaults for every host."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one worker process. ENVIRONMENT names the variable of each."""

    redis_url: str = "redis://127.0.0.1:6379"
    """The fleet's Redis."""
    out: Path = Path("data")
    """Folder for bodies; created if missing."""
    in_folder: Path | None = None
    """Folder that a fetch's `body_file` is read from; None: no fetch may have one."""
    policy: Policy = NO_POLICY
    allow_net: str = ""
    """Networks that may be dialled although they are not public, comma-separated."""
    deny_net: str = ""
    """Networks that are never dialled, comma-separated; overrides allow_net."""
    nameservers: str = ""
    """As `parse_nameservers` reads them; empty: the system's."""
    engine: str = HTTPX
    """One of ENGINES."""
    sink: str = FILES
    """One of SINKS."""
    warc_max_bytes: int = 1 << 30
    """A WARC segment is closed before it exceeds this size."""
    warc_max_age_s: float = 3600.0
    """A WARC segment is closed at this age."""
    user_agent: str = "fetchfleet/0.1"
    max_in_flight: int = 256
    """Concurrent fetches over all lanes."""
    grace_s: float = 10.0
    """How long fetches may go on after SIGTERM before they are handed back."""
    lease_s: float = 8.0
    """How long a lane stays with a worker that does not renew its lease."""
    max_backlog: int = 0
    """At so many fetches without a result the inbox and arq jobs wait. 0: no limit."""
    results_length: int = 100_000
    """Results kept in the stream of all batches. 0: no such stream."""
    min_free_bytes: int = 64 << 20
    """With less space on the disk of the out folder the worker acquires no lanes."""
    redis_patience_s: float = 60.0
    """How long a command waits for a Redis that does not answer. Workers wait for ever."""
    via: str = "lanes"
    """One of VIAS: how commands reach the fleet."""
    log_level: str = "info"
    """One of LOG_LEVELS; debug adds one line for each exchange."""
    worker_id: str = ""
    alone: bool = False
    """Every worker of the fleet has these settings: a fetch that this one cannot do ends at once."""

    @property
    def egress(self) -> Egress:
        """The egress rule of allow_net and deny_net."""
        return Egress.parse(self.allow_net, self.deny_net)

    def __repr__(self) -> str:
        return f"<Settings {redacted_url(self.redis_url)} out={self.out} id={self.worker_id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return what rich shows in a traceback; msgspec's own version shows the password."""
        return [("redis_url", redacted_url(self.redis_url)), ("out", self.out), ("worker_id", self.worker_id)]


ENVIRONMENT = {name: f"FETCHFLEET_{name.upper()}" for name in Settings.__struct_fields__}
ENVIRONMENT["in_folder"] = "FETCHFLEET_IN"


class _Number(NamedTuple):
    type: type[int | float]
    least: int
    most: int
    least_means: str = ""


_BOOLEANS = {"1": True, "0": False}

_NUMBERS = {
    "max_in_flight": _Number(int, 1, 100_000),
    "grace_s": _Number(float, 0, 3600),
    "lease_s": _Number(float, 1, 3600),
    "max_backlog": _Number(int, 0, 1 << 60, " (no limit)"),
    "results_length": _Number(int, 0, 10_000_000, " (none)"),
    "min_free_bytes": _Number(int, 0, 1 << 60),
    "redis_patience_s": _Number(float, 0, 7 * 86_400),
    "warc_max_bytes": _Number(int, 1 << 16, 1 << 60),
    "warc_max_age_s": _Number(float, 1, 30 * 86_400),
}


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings of flags (None: not given) and environment; raises SettingsError."""
    errors: list[str] = []
    given: dict[str, Any] = {"worker_id": f"{socket.gethostname()}-{os.getpid()}"}
    for name, variable in ENVIRONMENT.items():
        value = flags.get(name)
        if value is None:
            value = environment.get(variable) or None
        if value is not None:
            given[name] = value
    keys = flags.get(POLICY_KEYS) or {}
    path = given.pop("policy", None)
    if path is not None or keys:
        try:
            given["policy"] = read_policy(path and Path(path), keys)
        except OSError as error:
            errors.append(f"--policy {path}: {error.strerror}")
        except UnicodeDecodeError as error:
            errors.append(f"--policy {path}: {error}")
        except PolicyError as error:
            errors += [_with_option(fault, path, keys) for fault in error.faults]
    for name in [name for name in _NUMBERS if name in given]:
        try:
            given[name] = _NUMBERS[name].type(given[name])
        except ValueError:
            errors.append(f"{ENVIRONMENT[name]}: {given.pop(name)!r} is not a number")
    if given.get("alone") not in {None, *_BOOLEANS}:
        errors.append(f"{ENVIRONMENT['alone']}: {given.pop('alone')!r} is not 1 or 0")
    given |= {name: _BOOLEANS[given[name]] for name in ("alone",) if name in given}
    given |= {name: Path(given[name]) for name in ("out", "in_folder") if name in given}
    settings = Settings(**given)
    errors += _faults(settings)
    if errors:
        raise SettingsError("\n".join(errors))
    return settings


def read_policy(path: Path | None, default_keys: Mapping[str, Any] = NO_KEYS) -> Policy:
    """Read a policy file, if there is one; raises OSError, UnicodeDecodeError or PolicyError.

    default_keys: keys of the default table, which replace those of the file.
    """
    file = b"" if path is None else path.read_bytes()
    added = msgspec.json.encode(dict(default_keys), order="sorted") if default_keys else b""
    return parse_policy(file.decode("utf-8"), digest_of_bytes(file + added), default_keys)


def _with_option(fault: PolicyFault, path: str | None, option_keys: Mapping[str, Any]) -> str:
    """Return the message of a fault of the policy, with the option that it comes from."""
    for key in fault.keys if fault.table == DEFAULT else ():
        if key in option_keys:
            message = fault.message.removeprefix(f"[{DEFAULT}] ")
            option = OPTIONS_OF_KEYS.get(key)
            return f"{option}: {message.removeprefix(f'{key}: ')}" if option else f"--set: {message}"
    return f"--policy {path}: {fault.message}" if path else f"--set: {fault.message}"


def _faults(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with each setting."""
    for name, choices in {"engine": ENGINES, "sink": SINKS, "via": VIAS}.items():
        chosen = getattr(settings, name)
        if chosen not in choices:
            yield f"--{name} {chosen}: {REMOVED.get(chosen) or 'choose ' + ' or '.join(choices)}"
    if settings.log_level not in LOG_LEVELS:
        yield f"FETCHFLEET_LOG_LEVEL: {settings.log_level!r} is not one of {', '.join(LOG_LEVELS)}"
    for name, (_, least, most, least_means) in _NUMBERS.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            yield f"{ENVIRONMENT[name]}: must be within {least}{least_means} and {most}, got {value}"
    if not settings.user_agent.isascii() or not settings.user_agent.isprintable():
        yield "FETCHFLEET_USER_AGENT: must be printable ASCII"
    if found := UNSAFE.search(settings.worker_id):
        yield f"FETCHFLEET_WORKER_ID: holds {found[0]!a}; leave out characters that control or hide text"
    if settings.in_folder is not None and not os.path.isdir(settings.in_folder):  # noqa: PTH112 never raises
        yield f"--in {settings.in_folder}: is not a folder; name the one that holds the files to send"
    elif settings.in_folder is not None and not os.access(settings.in_folder, os.R_OK | os.X_OK):
        yield f"--in {settings.in_folder}: Permission denied; the worker must be able to read it"
    checks = (
        lambda: settings.egress,
        lambda: parse_nameservers(settings.nameservers),
        lambda: connection_pool(settings.redis_url),
        lambda: inbox_of(settings.redis_url) if settings.via == "inbox" else None,
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            yield str(error)


_NAMESERVER = re.compile(
    r"\[(?P<bracketed>[^%]*)\](:(?P<port>[0-9]+))?|(?P<host>[^:%]*)(:(?P<host_port>[0-9]+))?|(?P<bare>[^%]*)"
)


def parse_nameservers(text: str) -> tuple[str, ...]:
    """Parse `ADDRESS[:PORT]`, comma-separated; an IPv6 address with a port needs brackets.

    Returns each with its port, as c-ares reads it. Raises ValueError naming the entry and the remedy.
    """
    servers = []
    for entry in filter(None, map(str.strip, text.split(","))):
        address, port = None, 0
        if found := _NAMESERVER.fullmatch(entry):
            with suppress(ValueError):
                address = ip_address(found["bracketed"] or found["host"] or found["bare"])
                port = int(found["port"] or found["host_port"] or 53)
        if address is None or not 1 <= port <= 0xFFFF:
            raise ValueError(
                f"nameserver {entry!r}: write it like 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:5353"
            )
        servers.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    return tuple(servers)
