"""The options of the commands that start workers: storage, network, and the limits of each host."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import typer

from fetchfleet.worker.cli.options.shared import LIST
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.policy.model import PROFILES, PolicyError
from fetchfleet.worker.policy.pairs import parsed
from fetchfleet.worker.settings import OPTIONS_OF_KEYS, POLICY_KEYS

STORAGE, NETWORK, LIMITS = "Storage", "Network", "Limits of each host"
"""Groups of options in help texts, beside those that commands without workers have too."""


def _option(
    group: str, name: str, metavar: str, text: str, *flags: str, type_: Any = str
) -> inspect.Parameter:
    """Return the parameter of a command for an option; None if the option is not given."""
    option = typer.Option(None, *flags, metavar=metavar, help=text, rich_help_panel=group)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=type_ | None)


LIST_OPTIONS = [
    _option(
        LIST,
        "list_format",
        "NAME",
        "Format of FILE: text, csv, tsv, parquet, aria2 or sitemap (default: by its content).",
        "--format",
    ),
    _option(LIST, "url_col", "NAME|N", "Column of URLs in a table (default: the one that has URLs)."),
    _option(LIST, "meta_cols", "A,B|all", "Columns of a table that results repeat as `meta`."),
    _option(LIST, "dest_col", "NAME|N", "Column of a table with the path of each body, or its template."),
    _option(LIST, "sha256_col", "NAME|N", "Column of a table with the SHA-256 of each body.", "--sha256-col"),
    _option(
        LIST,
        "expand",
        "",
        "Expand {000..999}, {0..90..10}, {a..z} and {a,b} in URLs of a text.",
        "--expand",
        type_=bool,
    ),
]
"""The options that say how FILE is read."""

SETTING_OPTIONS = [
    _option(
        STORAGE,
        "out",
        "FOLDER|URL",
        "Folder for bodies (default: ./data), or an object store: s3://bucket/prefix, gs://…, az://…"
        " (env: FETCHFLEET_OUT).",
    ),
    _option(
        STORAGE,
        "spool",
        "FOLDER",
        "Folder for bodies that are not yet whole, with an object store (default: ./spool,"
        " env: FETCHFLEET_SPOOL).",
    ),
    _option(
        STORAGE,
        "sink",
        "files|warc",
        "Store each body as a file (default), or all as WARC segments (env: FETCHFLEET_SINK).",
    ),
    _option(
        STORAGE,
        "warc_compression",
        "gzip|none",
        "Compress each record of WARC segments (default: gzip, env: FETCHFLEET_WARC_COMPRESSION).",
    ),
    _option(
        STORAGE,
        "in_folder",
        "FOLDER",
        "Folder with the files that fetches send as their body (env: FETCHFLEET_IN).",
        "--in",
    ),
    _option(
        NETWORK,
        "allow_net",
        "NET[,NET]",
        "Networks that may be dialled although they are not public: CIDRs, private or loopback"
        " (env: FETCHFLEET_ALLOW_NET).",
    ),
    _option(NETWORK, "deny_net", "NET[,NET]", "Networks that are never dialled (env: FETCHFLEET_DENY_NET)."),
    _option(
        NETWORK,
        "engine",
        "httpx|direct",
        "HTTP client; direct is faster (default: httpx, env: FETCHFLEET_ENGINE).",
    ),
    _option(LIMITS, "policy", "FILE", "Policy file, TOML (env: FETCHFLEET_POLICY)."),
]
"""The options that are settings, by the names of these."""

LIMIT_OPTIONS = [
    _option(
        LIMITS,
        "concurrency",
        "N|MIN-MAX",
        "Concurrent fetches, or a range within which they adapt to the host (default: 8).",
    ),
    _option(LIMITS, "rate", "N", "Requests started each second; 0: no limit (default).", type_=float),
    _option(LIMITS, "attempts", "N", "Failed attempts before a fetch fails (default: 5).", type_=int),
    _option(
        LIMITS,
        "timeout",
        "SECONDS|PROFILE",
        "Limit of one attempt, or a profile: api, upload, stream (default), internal.",
    ),
    _option(LIMITS, "max_bytes", "SIZE", "Largest body, such as 50MB or 64MiB; 0: no limit (default)."),
    _option(
        LIMITS,
        "set_keys",
        "KEY=VALUE",
        "Any key of the policy's default table, such as robots=obey, segments=4 or"
        " 'accept={types = [\"image/*\"]}'. Repeatable.",
        "--set",
        type_=list[str],
    ),
]
"""The options that set keys of the policy's `[default]` table, over those of the policy file."""

_BYTES = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?:([kKMGT])(i?))?B?")
_NUMBER = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


def with_list_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a list to a command, which receives them as one mapping, `reading`."""

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        reading = {option.name: values.pop(option.name) for option in LIST_OPTIONS}
        command(reading=reading, **values)

    _add_options(wrapper, command, "reading", LIST_OPTIONS)
    return wrapper


def reading_words(reading: Mapping[str, Any]) -> list[str]:
    """Return the words of the options of a list, for a command line that continues this one."""
    words: list[str] = []
    for option in LIST_OPTIONS:
        if value := reading[option.name]:
            flags = option.default.param_decls or [f"--{option.name.replace('_', '-')}"]
            words += flags if value is True else [*flags, value]
    return words


def with_worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a worker to a command, which receives them as one mapping, `flags`."""

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        flags = {option.name: values.pop(option.name) for option in SETTING_OPTIONS}
        limits = {option.name: values.pop(option.name) for option in LIMIT_OPTIONS}
        command(flags={**flags, POLICY_KEYS: policy_keys(limits)}, **values)

    _add_options(wrapper, command, "flags", [*SETTING_OPTIONS, *LIMIT_OPTIONS])
    return wrapper


def _add_options(
    wrapper: Callable[..., None], command: Callable[..., None], name: str, options: list[inspect.Parameter]
) -> None:
    """Give a wrapper the parameters of its command, with options in place of the one of that name."""
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != name]
    wrapper.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]


def policy_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy keys that options set, with their values; the policy checks the ranges.

    values: of LIMIT_OPTIONS, by parameter; None or missing if an option is not given. A named option
    overrides `--set`. Raises CommandError for a value in another form.
    """
    try:
        keys = parsed(lines) if (lines := values.get("set_keys")) else {}
    except PolicyError as error:
        raise CommandError(f"--set {error}", BAD_USE) from None
    for key, option in OPTIONS_OF_KEYS.items():
        value = values.get(option.removeprefix("--").replace("-", "_"))
        if value is not None:
            keys[key] = _PARSERS[key](value) if key in _PARSERS else value
    return keys


def bytes_of(text: str) -> int:
    """Return the number of bytes of a size such as 50000000, 50MB or 47.7MiB, rounded up."""
    if (found := _BYTES.fullmatch(text)) is None:
        raise CommandError(f"--max-bytes {text}: write it like 50000000, 50MB or 64MiB; 0: no limit", BAD_USE)
    number, prefix, binary = found.groups()
    power = " KMGT".index(prefix.upper()) if prefix else 0
    unit: int = (1024 if binary else 1000) ** power
    return math.ceil(float(number) * unit)


def concurrency_of(text: str) -> int | dict[str, int]:
    """Return the policy's value: a number for `8`, a table for the range `1-64`."""
    if found := _RANGE.fullmatch(text):
        return {"min": int(found[1]), "max": int(found[2])}
    if _NUMBER.fullmatch(text) is None:
        raise CommandError(f"--concurrency {text}: write it like 8, or 1-64 to adapt to the host", BAD_USE)
    return int(text)


def timeout_of(text: str) -> dict[str, float] | str:
    """Return the policy's value: the name of a profile, or for seconds a table.

    The table has the limits of the profile `stream`, none of them above these seconds.
    """
    try:
        total_s = float(text)
    except ValueError:
        return text
    limits = msgspec.structs.asdict(PROFILES["stream"])
    return {name: min(limit_s, total_s) for name, limit_s in limits.items()} | {"total_s": total_s}


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "concurrency": concurrency_of,
    "timeout": timeout_of,
    "max_bytes": bytes_of,
}
"""The parsers of options whose text is not the value of the key, by key."""
