"""What a worker is told: flags over environment over defaults, checked all at once. Frozen."""

import os
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from fetchfleet.jobs.redis_connection import connection_pool
from fetchfleet.worker.observability.levels import LEVELS
from fetchfleet.worker.observability.redact import url as redacted_url
from fetchfleet.worker.policy.egress import Egress
from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.model import PolicyError

FILES, WARC = "files", "warc"
SINKS = (FILES, WARC)


class SettingsError(ValueError):
    """Settings that cannot be used; the message names each with its remedy, one a line."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process.

    redis_url: the fleet's Redis. out: the folder for bodies, made when missing. in_folder: the one that
    `body_file` names files in, none by default. allow_net: networks that may be dialled although they are
    not public; deny_net: those that are never dialled, be they allowed. nameservers: who is asked for names;
    none: whom the system asks. max_in_flight: fetches at once over all lanes.
    grace_s: how long fetches may go on after SIGTERM before they are handed back. lease_s: how long
    a lane stays with a worker that shows no sign of life. user_agent: sent with every request.
    max_backlog: with so many fetches without a result the inbox and the arq door wait, 0: no limit.
    results_length: how many results the stream of all batches keeps, 0: there is none.
    min_free_bytes: with less than that free on the disk of the out folder the worker takes no lanes.
    sink: where bodies go, `files` or `warc`; warc_max_bytes, warc_max_age_s: when a segment is closed.
    log_level: info, or debug: a line for each exchange, too.
    """

    redis_url: str = "redis://127.0.0.1:6379"
    out: Path = Path("data")
    in_folder: Path | None = None
    policy: Policy = msgspec.field(default_factory=Policy)
    allow_net: str = ""
    deny_net: str = ""
    nameservers: str = ""
    engine: str = "httpx"
    sink: str = FILES
    warc_max_bytes: int = 1 << 30
    warc_max_age_s: float = 3600.0
    user_agent: str = "fetchfleet/0.1"
    max_in_flight: int = 256
    grace_s: float = 10.0
    lease_s: float = 8.0
    max_backlog: int = 0
    results_length: int = 100_000
    min_free_bytes: int = 64 << 20
    log_level: str = "info"
    worker_id: str = ""

    @property
    def egress(self) -> Egress:
        """The egress rule that allow_net and deny_net make."""
        return Egress.parse(self.allow_net, self.deny_net)

    def __repr__(self) -> str:
        return f"<Settings {redacted_url(self.redis_url)} out={self.out} id={self.worker_id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What rich shows in a traceback; msgspec's own would show the password."""
        return [("redis_url", redacted_url(self.redis_url)), ("out", self.out), ("worker_id", self.worker_id)]


_ENVIRONMENT = {
    "redis_url": "FETCHFLEET_REDIS_URL",
    "out": "FETCHFLEET_OUT",
    "in_folder": "FETCHFLEET_IN",
    "policy": "FETCHFLEET_POLICY",
    "allow_net": "FETCHFLEET_ALLOW_NET",
    "deny_net": "FETCHFLEET_DENY_NET",
    "nameservers": "FETCHFLEET_NAMESERVERS",
    "engine": "FETCHFLEET_ENGINE",
    "sink": "FETCHFLEET_SINK",
    "warc_max_bytes": "FETCHFLEET_WARC_MAX_BYTES",
    "warc_max_age_s": "FETCHFLEET_WARC_MAX_AGE_S",
    "user_agent": "FETCHFLEET_USER_AGENT",
    "max_in_flight": "FETCHFLEET_MAX_IN_FLIGHT",
    "grace_s": "FETCHFLEET_GRACE_S",
    "lease_s": "FETCHFLEET_LEASE_S",
    "max_backlog": "FETCHFLEET_MAX_BACKLOG",
    "results_length": "FETCHFLEET_RESULTS_LENGTH",
    "min_free_bytes": "FETCHFLEET_MIN_FREE_BYTES",
    "log_level": "FETCHFLEET_LOG_LEVEL",
    "worker_id": "FETCHFLEET_WORKER_ID",
}


_NUMBERS: tuple[tuple[str, type[int | float]], ...] = (
    ("max_in_flight", int),
    ("grace_s", float),
    ("lease_s", float),
    ("max_backlog", int),
    ("results_length", int),
    ("min_free_bytes", int),
    ("warc_max_bytes", int),
    ("warc_max_age_s", float),
)


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """The settings that flags (None: not given) and the environment make; raises SettingsError."""
    given: dict[str, Any] = {}
    for name, variable in _ENVIRONMENT.items():
        value = flags.get(name)
        if value is None:
            value = environment.get(variable) or None
        if value is not None:
            given[name] = value
    errors: list[str] = []
    _read_policy(given, errors)
    given.setdefault("worker_id", f"{socket.gethostname()}-{os.getpid()}")
    for name, kind in _NUMBERS:
        _read_number(given, name, kind, errors)
    given |= {name: Path(given[name]) for name in ("out", "in_folder") if name in given}
    settings = Settings(**given)
    errors += _faults(settings)
    if errors:
        raise SettingsError("\n".join(errors))
    return settings


def _read_policy(given: dict[str, Any], errors: list[str]) -> None:
    path = given.pop("policy", None)
    if path is None:
        return
    try:
        given["policy"] = parse_policy(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PolicyError) as error:
        errors.append(f"--policy {path}: {error}")


def _read_number(given: dict[str, Any], name: str, kind: type[int | float], errors: list[str]) -> None:
    if name not in given:
        return
    try:
        given[name] = kind(given[name])
    except ValueError:
        errors.append(f"{_ENVIRONMENT[name]}: {given.pop(name)!r} is not a number")


def _faults(settings: Settings) -> list[str]:
    faults: list[str] = []
    faults += engine_faults(settings.engine, settings.policy)
    if settings.sink not in SINKS:
        faults.append(f"--sink {settings.sink}: there is {', '.join(SINKS)}")
    if settings.log_level not in LEVELS:
        faults.append(f"FETCHFLEET_LOG_LEVEL: {settings.log_level!r} is not one of {', '.join(LEVELS)}")
    faults += _out_of_range(settings)
    if not settings.user_agent.isascii() or not settings.user_agent.isprintable():
        faults.append("FETCHFLEET_USER_AGENT: must be printable ASCII")
    checks = (
        lambda: settings.egress,
        lambda: parse_nameservers(settings.nameservers),
        lambda: connection_pool(settings.redis_url),
        lambda: _in_folder(settings.in_folder),
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            faults.append(str(error))
    return faults


def _out_of_range(settings: Settings) -> list[str]:
    faults: list[str] = []
    if not 1 <= settings.max_in_flight <= 100_000:
        faults.append("FETCHFLEET_MAX_IN_FLIGHT: must be within 1 and 100000")
    if not 1 <= settings.lease_s <= 3600:
        faults.append("FETCHFLEET_LEASE_S: must be within 1 and 3600")
    if not 0 <= settings.grace_s <= 3600:
        faults.append("FETCHFLEET_GRACE_S: must be within 0 and 3600")
    if settings.max_backlog < 0:
        faults.append("FETCHFLEET_MAX_BACKLOG: must be 0 (no limit) or more")
    if not 0 <= settings.results_length <= 10_000_000:
        faults.append("FETCHFLEET_RESULTS_LENGTH: must be within 0 (none) and 10000000")
    if not 0 <= settings.min_free_bytes <= 1 << 60:
        faults.append("FETCHFLEET_MIN_FREE_BYTES: must be within 0 (however few) and 1152921504606846976")
    if not 1 << 16 <= settings.warc_max_bytes <= 1 << 60:
        faults.append("FETCHFLEET_WARC_MAX_BYTES: must be within 65536 and 1152921504606846976")
    if not 1 <= settings.warc_max_age_s <= 30 * 86_400:
        faults.append("FETCHFLEET_WARC_MAX_AGE_S: must be within 1 and 2592000")
    return faults


def _in_folder(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--in {folder}: is no folder; name the one that holds the files to send")


HTTPX, REQWEST = "httpx", "reqwest"
ENGINES = (HTTPX, REQWEST)


def engine_faults(engine: str, policy: Policy) -> Iterator[str]:
    """Why that engine cannot serve the policy here, each with its remedy."""
    if engine not in ENGINES:
        yield f"--engine {engine}: there is {', '.join(ENGINES)}"
    if engine == REQWEST:
        if find_spec("pyreqwest") is None:
            yield f"--engine {engine}: is not installed; pip install 'fetchfleet[reqwest]'"
        yield from _lacks(policy)


def _lacks(policy: Policy) -> Iterator[str]:
    """It adds to those whom the system trusts, and cannot do without them."""
    for where, lane in policy.named():
        if lane.tls.ca_file:
            yield f"[{where}] ca_file: --engine reqwest would trust the system's as well; use --engine httpx"


def parse_nameservers(text: str) -> tuple[str, ...]:
    """ADDRESS[:PORT], comma-separated, an IPv6 one with a port in brackets; empty text is none.

    Raises ValueError naming the entry and the remedy.
    """
    entries = (entry.strip() for entry in text.split(","))
    return tuple(_nameserver(entry) for entry in entries if entry)


def _nameserver(entry: str) -> str:
    """As c-ares reads it: with a port, an IPv6 address in brackets."""
    host, port = _parted(entry)
    try:
        address, number = ip_address(host), int(port)
    except ValueError:
        raise _no_nameserver(entry) from None
    if not (port.isascii() and port.isdigit() and 1 <= number <= 0xFFFF) or "%" in host:
        raise _no_nameserver(entry)
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def _parted(entry: str) -> tuple[str, str]:
    if entry.startswith("[") and entry.endswith("]"):
        return entry[1:-1], "53"
    if entry.startswith("["):
        host, _, port = entry[1:].partition("]:")
        return host, port
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, "53"


def _no_nameserver(entry: str) -> ValueError:
    return ValueError(f"nameserver {entry!r}: write it like 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:5353")
