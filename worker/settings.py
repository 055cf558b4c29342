"""The settings of a worker, from flags, environment variables and defaults, in this order of precedence."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fetchfleet.jobs.contract.safe_text import UNSAFE
from fetchfleet.jobs.contract.webhooks import UNSIGNED, SigningKeys
from fetchfleet.jobs.redis_connection import connection_pool, inbox_of
from fetchfleet.worker.observability.redact import url as redacted_url
from fetchfleet.worker.policy.egress import Egress
from fetchfleet.worker.policy.file import NO_KEYS, Policy, parse_policy
from fetchfleet.worker.policy.model import PolicyError, PolicyFault
from fetchfleet.worker.policy.names import DEFAULT
from fetchfleet.worker.policy.published import digest_of_bytes
from fetchfleet.worker.util import object_url
from fetchfleet.worker.util.listen import host_and_port

HTTPX, DIRECT = "httpx", "direct"
ENGINES = (HTTPX, DIRECT)
REMOVED = {"reqwest": "was removed: direct replaces it and needs no extra; use --engine direct"}
"""The engines of earlier versions, each with the rest of its error message."""
FILES, WARC = "files", "warc"
SINKS = (FILES, WARC)
OBJECTS = "objects"
"""The sink of workers with an object store, in their log and registration."""
SPOOL = Path("spool")
GZIP, NONE = "gzip", "none"
COMPRESSIONS = (GZIP, NONE)
LOG_LEVELS = ("debug", "info")
NATIVE = "native"
LOG_SCHEMAS = (NATIVE, "otel", "ecs")
OFF, TRACED, ALL = "off", "traced", "all"
OTELS = (OFF, TRACED, ALL)
VIAS = ("lanes", "inbox")
POLICY_KEYS = "policy_keys"
"""The flag with keys of the policy's default table and their values."""
OPTIONS_OF_KEYS = {
    "concurrency": "--concurrency",
    "rate_per_s": "--rate",
    "attempts": "--attempts",
    "timeout": "--timeout",
    "max_bytes": "--max-bytes",
}
"""The options that set a policy key by its own name. `--set KEY=VALUE` sets any key."""


class SettingsError(ValueError):
    """Invalid settings. The message has a line for each, with its remedy."""


NO_POLICY = Policy()
"""The policy without a policy file: the built-in defaults for every host."""


_LIMITS = ("max_in_flight", "lease_s", "grace_s", "max_backlog", "results_length", "min_free_bytes")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one worker process, or of a command. ENVIRONMENT names the variable of each."""

    redis_url: str = "redis://127.0.0.1:6379"
    """The fleet's Redis."""
    out: Path = Path("data")
    """The folder for bodies, or with an object store its spool; created if missing."""
    store: str = ""
    """The URL of the object store for bodies, set by `--out URL`; empty if they are files."""
    spool: Path | None = None
    """The folder for bodies that are not yet in the store; unused without a store."""
    in_folder: Path | None = None
    """The folder with the files that fetches name as `body_file`. If None, no fetch may name one."""
    policy: Policy = NO_POLICY
    """The policy of all hosts."""
    allow_net: str = ""
    """The networks that may be dialled although they are not public, separated by commas."""
    deny_net: str = ""
    """The networks that are never dialled, separated by commas; overrides allow_net."""
    nameservers: str = ""
    """The nameservers, in the form that `parse_nameservers` parses; if empty, those of the system."""
    engine: str = HTTPX
    """One of ENGINES."""
    sink: str = FILES
    """One of SINKS."""
    warc_compression: str = GZIP
    """One of COMPRESSIONS, for the records of WARC segments."""
    warc_revisit: bool = True
    """A body that is in a WARC segment already becomes a revisit record."""
    warc_max_bytes: int = 1 << 30
    """The largest size of a WARC segment, unless it has a single, larger record."""
    warc_max_age_s: float = 3600.0
    """The age at which a WARC segment is closed."""
    user_agent: str = "fetchfleet/0.1"
    """The User-Agent of requests that set none."""
    max_in_flight: int = 256
    """The limit of concurrent fetches in all lanes."""
    grace_s: float = 10.0
    """The time after SIGTERM in which fetches may end, before they are returned to their lanes."""
    lease_s: float = 8.0
    """The time until another worker may acquire a lane whose lease is not renewed."""
    max_backlog: int = 0
    """The number of unfinished fetches at which inbox messages and arq jobs must wait; 0 for no limit."""
    results_length: int = 100_000
    """The number of results in the stream of all batches; 0 for no such stream."""
    min_free_bytes: int = 64 << 20
    """The free space on the disk of the out folder below which the worker acquires no lanes."""
    redis_patience_s: float = 60.0
    """The time that a command waits while Redis does not answer. Workers wait without limit."""
    via: str = "lanes"
    """One of VIAS: how commands reach the fleet."""
    log_level: str = "info"
    """One of LOG_LEVELS; debug adds one line for each exchange."""
    log_schema: str = NATIVE
    """One of LOG_SCHEMAS: the names of the fields of log lines."""
    log_finished: str = "all"
    """The finished fetches with a log line: `all`, `failed`, or `1/N` (the failed and one of N others)."""
    metrics: str = ""
    """HOST:PORT at which a worker serves its metrics; if empty, it serves none. Not used by `run`."""
    metrics_hosts: int = 0
    """The number of lanes, the busiest ones, with metrics of their own."""
    otel: str = OFF
    """One of OTELS: which fetches have an OpenTelemetry span, those with a traceparent or all."""
    notify_secret: str = ""
    """The secrets with which webhooks are signed, in the form that `SigningKeys.parse` parses."""
    worker_id: str = ""
    """The name of the worker in results, logs and status."""
    alone: bool = False
    """True if every worker of the fleet has these settings: a fetch that this one cannot do ends at once."""

    @property
    def egress(self) -> Egress:
        """The egress rule of allow_net and deny_net."""
        return Egress.parse(self.allow_net, self.deny_net)

    @property
    def signing_keys(self) -> SigningKeys:
        """The secrets of notify_secret. Raises ValueError."""
        if not self.notify_secret:
            return UNSIGNED
        try:
            return SigningKeys.parse(self.notify_secret)
        except ValueError as error:
            raise ValueError(f"FETCHFLEET_NOTIFY_SECRET: {error}") from None

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of `metrics`. Raises ValueError."""
        return host_and_port(self.metrics, "--metrics") if self.metrics else None

    @property
    def log_one_of(self) -> int:
        """N of `log_finished`: one of N fetches without a failure is logged; 0: none. Raises ValueError."""
        words = {"all": 1, "failed": 0}
        if self.log_finished in words:
            return words[self.log_finished]
        match = re.fullmatch(r"1/([1-9][0-9]{0,8})", self.log_finished)
        if match is None:
            raise ValueError(
                f"FETCHFLEET_LOG_FINISHED: must be all, failed, or 1/N as in 1/100, got {self.log_finished!r}"
            )
        return int(match[1])

    @property
    def limits(self) -> dict[str, float]:
        """The limits that `worker.started` names."""
        return {name: getattr(self, name) for name in _LIMITS}

    @property
    def sink_kind(self) -> str:
        """The kind of the sink: OBJECTS, or one of SINKS."""
        return OBJECTS if self.store else self.sink

    @property
    def bodies(self) -> str:
        """The place of stored bodies, for messages: the URL of the store, or the out folder."""
        return self.store or str(self.out)

    def __repr__(self) -> str:
        return f"<Settings {redacted_url(self.redis_url)} out={self.out} id={self.worker_id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the fields that rich shows in a traceback. The method of msgspec would show the password."""
        return [("redis_url", redacted_url(self.redis_url)), ("out", self.out), ("worker_id", self.worker_id)]


ENVIRONMENT = {name: f"FETCHFLEET_{name.upper()}" for name in Settings.__struct_fields__}
ENVIRONMENT["in_folder"] = "FETCHFLEET_IN"
del ENVIRONMENT["store"]
"""The environment variables, by the names of the settings."""


class _Number(NamedTuple):
    """The type and the range of a setting."""

    type: type[int | float]
    least: int
    most: int
    least_means: str = ""
    """An addition to `least` in the error message."""


_SWITCHES = ("alone", "warc_revisit")
_BOOLEANS = {"1": True, "0": False}

_NUMBERS = {
    "max_in_flight": _Number(int, 1, 100_000),
    "grace_s": _Number(float, 0, 3600),
    "lease_s": _Number(float, 1, 3600),
    "max_backlog": _Number(int, 0, 1 << 60, " (no limit)"),
    "results_length": _Number(int, 0, 10_000_000, " (none)"),
    "min_free_bytes": _Number(int, 0, 1 << 60),
    "redis_patience_s": _Number(float, 0, 7 * 86_400),
    "metrics_hosts": _Number(int, 0, 1000, " (none)"),
    "warc_max_bytes": _Number(int, 1 << 16, 1 << 60),
    "warc_max_age_s": _Number(float, 1, 30 * 86_400),
}


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings of flags (None if not given) and environment.

    Raises SettingsError with all faults, except in the files that the policy names.
    """
    errors: list[str] = []
    values: dict[str, Any] = {"worker_id": f"{socket.gethostname()}-{os.getpid()}"}
    for name, variable in ENVIRONMENT.items():
        value = flags.get(name)
        if value is None:
            value = environment.get(variable) or None
        if value is not None:
            values[name] = value
    keys = flags.get(POLICY_KEYS) or {}
    path = values.pop("policy", None)
    if path is not None or keys:
        try:
            values["policy"] = read_policy(path and Path(path), keys)
        except OSError as error:
            errors.append(f"--policy {path}: {error.strerror}")
        except UnicodeDecodeError as error:
            errors.append(f"--policy {path}: {error}")
        except PolicyError as error:
            errors += [_with_option(fault, path, keys) for fault in error.faults]
    for name in [name for name in _NUMBERS if name in values]:
        type_ = _NUMBERS[name].type
        try:
            values[name] = type_(values[name])
        except ValueError:
            kind = "an integer" if type_ is int else "a number"
            errors.append(f"{ENVIRONMENT[name]}: must be {kind}, got {values.pop(name)!r}")
    errors += [
        f"{ENVIRONMENT[name]}: must be 1 or 0, got {values.pop(name)!r}"
        for name in _SWITCHES
        if values.get(name, "0") not in _BOOLEANS
    ]
    values |= {name: _BOOLEANS[values[name]] for name in _SWITCHES if name in values}
    errors += _separate_store(values, flags)
    values |= {name: Path(values[name]) for name in ("out", "in_folder", "spool") if name in values}
    settings = Settings(**values)
    errors += _faults(settings)
    if errors:
        raise SettingsError("\n".join(errors))
    return settings


def _separate_store(values: dict[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """Make an `out` that is a URL the store, and the spool the out folder. Returns the faults of the URL."""
    out = str(values.get("out", ""))
    if "://" not in out:
        spool = flags.get("spool")
        return [f"--spool {spool}: needs a store; give --out s3://bucket/prefix"] if spool else []
    values["out"] = values.get("spool", SPOOL)
    try:
        values["store"] = str(object_url.parse(out))
    except ValueError as error:
        return [f"--out: {error}"]
    if find_spec("obstore") is None:
        return ["--out: a store needs an extra; install it with: pip install 'fetchfleet[objects]'"]
    return []


def read_policy(path: Path | None, default_keys: Mapping[str, Any] = NO_KEYS) -> Policy:
    """Return the policy of a file, or the built-in defaults if the path is None.

    default_keys: keys of the default table, which override those of the file. Raises OSError,
    UnicodeDecodeError or PolicyError.
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


def _unknown_choices(settings: Settings) -> Iterator[str]:
    """Yield the error message of each setting that is not one of its choices."""
    for name, choices in {"engine": ENGINES, "sink": SINKS, "via": VIAS}.items():
        value = getattr(settings, name)
        if value not in choices:
            yield f"--{name} {value}: {REMOVED.get(value) or 'choose ' + ' or '.join(choices)}"
    if settings.warc_compression not in COMPRESSIONS:
        yield f"--warc-compression {settings.warc_compression}: choose {' or '.join(COMPRESSIONS)}"
    for name, words in {"log_level": LOG_LEVELS, "log_schema": LOG_SCHEMAS, "otel": OTELS}.items():
        if (value := getattr(settings, name)) not in words:
            yield f"{ENVIRONMENT[name]}: must be {' or '.join(words)}, got {value!r}"


def _faults(settings: Settings) -> Iterator[str]:
    """Yield the error message of each invalid setting."""
    yield from _unknown_choices(settings)
    for name, (_, least, most, least_means) in _NUMBERS.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            yield f"{ENVIRONMENT[name]}: must be between {least}{least_means} and {most}, got {value}"
    if settings.store and settings.sink == WARC:
        yield "--sink warc: writes segments to a folder; give --out a folder, or leave out --sink warc"
    if not settings.user_agent.isascii() or not settings.user_agent.isprintable():
        yield f"FETCHFLEET_USER_AGENT: must be printable ASCII, got {settings.user_agent!a}"
    if match := UNSAFE.search(settings.worker_id):
        yield f"FETCHFLEET_WORKER_ID: contains {match[0]!a}; remove control and invisible characters"
    if settings.in_folder is not None and not os.path.isdir(settings.in_folder):  # noqa: PTH112 never raises
        yield f"--in {settings.in_folder}: not a folder; give the one with the files to send"
    elif settings.in_folder is not None and not os.access(settings.in_folder, os.R_OK | os.X_OK):
        yield f"--in {settings.in_folder}: Permission denied; let the user of the worker read it"
    checks = (
        lambda: settings.egress,
        lambda: parse_nameservers(settings.nameservers),
        lambda: settings.log_one_of,
        lambda: connection_pool(settings.redis_url),
        lambda: _check_extra(settings.otel),
        lambda: inbox_of(settings.redis_url) if settings.via == "inbox" else None,
        lambda: settings.metrics_address,
        lambda: settings.signing_keys,
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            yield str(error)


def _check_extra(otel: str) -> None:
    """Raise ValueError if spans are enabled, and their extra is not installed."""
    if otel != OFF and find_spec("opentelemetry") is None:
        raise ValueError("FETCHFLEET_OTEL: needs an extra; install it with: pip install 'fetchfleet[otel]'")


_NAMESERVER = re.compile(
    r"\[(?P<bracketed>[^%]*)\](:(?P<port>[0-9]+))?|(?P<host>[^:%]*)(:(?P<host_port>[0-9]+))?|(?P<bare>[^%]*)"
)


def parse_nameservers(text: str) -> tuple[str, ...]:
    """Return the nameservers of a list of `ADDRESS[:PORT]`, each with its port, in the form of c-ares.

    The list is separated by commas. An IPv6 address with a port needs brackets. Raises ValueError.
    """
    servers = []
    for entry in filter(None, map(str.strip, text.split(","))):
        address, port = None, 0
        if match := _NAMESERVER.fullmatch(entry):
            with suppress(ValueError):
                address = ip_address(match["bracketed"] or match["host"] or match["bare"])
                port = int(match["port"] or match["host_port"] or 53)
        if address is None or not 1 <= port <= 0xFFFF:
            raise ValueError(
                f"FETCHFLEET_NAMESERVERS: nameserver {entry!r} is invalid; write it like 10.0.0.53,"
                " 10.0.0.53:5353 or [fd00::53]:5353"
            )
        servers.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    return tuple(servers)
