"""The policy of every host: defaults and tables by host, from a TOML file or set at run time.

    [default]
    concurrency = 8

    [host."api.example.com"]
    rate_per_s = 5

    [host."*.cdn.net"]
    concurrency = 32

For each key the most specific table wins: the host's own, then the longest pattern, then the default. Pure.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.names import DEFAULT, covers, lane_named
from fetchfleet.worker.policy.pauses import PAUSED, Overrides, PauseMark, Pauses, Table, pauses_of

FILE_ONLY = ("ca_file", "client_cert", "client_key", "verify", "https_to_http", "redirect_bodies")
"""Keys that name files on a worker's disk, or weaken its protection: Redis must not be able to set them."""

NO_KEYS: Table = MappingProxyType({})

ONE_HOSTS = ("client_cert", "client_key")
"""Keys of a client certificate, which must not be sent to every host."""


class Policy:
    """The policy of every lane. tables: by host or pattern, the keys that differ from the default table.

    pauses: what is paused at run time, and by the file; None if the tables are the file's.
    default_table: the keys of the default table; None: those that differ from the built-in defaults.
    digest: of the policy file, if there is one.
    """

    def __init__(
        self,
        default: LanePolicy | None = None,
        tables: Mapping[str, Table] | None = None,
        pauses: Pauses | None = None,
        *,
        default_table: Table | None = None,
        digest: str = "",
    ) -> None:
        self.default = default or LanePolicy()
        self.tables = dict(tables or {})
        self.default_table = _differing(self.default) if default_table is None else default_table
        self.digest = digest
        self.pauses = pauses or Pauses({}, {}, (), self._paused_keys())
        self._lanes: dict[str, LanePolicy] = {}
        patterns = sorted((name for name in self.tables if covers(name, name)), key=len)
        for name, table in self.tables.items():
            values = msgspec.structs.asdict(self.default)
            for pattern in patterns:  # from the shortest to the longest
                if covers(pattern, name):
                    values |= self.tables[pattern]
            self._lanes[name] = _lane_policy(_where(name), {**values, **table})
        suffixes = [pattern[1:] for pattern in self.tables if pattern.startswith("*.")]
        self._suffixes = sorted(suffixes, key=len, reverse=True)

    def for_lane(self, name: str) -> LanePolicy:
        """Return the policy of a lane: its host's, else that of the longest pattern, else the default."""
        if name in self._lanes:
            return self._lanes[name]
        for suffix in self._suffixes:
            if name.endswith(suffix):
                return self._lanes["*" + suffix]
        return self.default

    def overridden(
        self, overrides: Mapping[str, Table], marks: Mapping[str, PauseMark] | None = None
    ) -> "Policy":
        """Return a policy in which the tables, by host, pattern or `default`, override those of this one.

        marks: which of them are pauses and exceptions (worker/policy/pauses.py). Raises PolicyError. The
        tables come from Redis: they cannot set FILE_ONLY keys.
        """
        for name, table in overrides.items():
            _refuse(FILE_ONLY, _where(name), table, "is set in the workers' policy file, never at run time")
        default = _lane_policy(
            DEFAULT, {**msgspec.structs.asdict(self.default), **overrides.get(DEFAULT, {})}
        )
        names = {*self.tables, *overrides} - {DEFAULT}
        merged = Policy(
            default,
            {name: {**self.tables.get(name, {}), **overrides.get(name, {})} for name in sorted(names)},
        )
        return merged.with_pauses(self.pauses_with(Overrides(overrides, marks or {})))

    def pauses_with(self, found: Overrides) -> Pauses:
        """Return the pauses in force with these overrides, the file's included."""
        return pauses_of(found, self.pauses.in_file)

    def with_pauses(self, pauses: Pauses) -> "Policy":
        """Return this policy with `paused` as these pauses say, whatever the tables say of it."""

        def stopped(name: str) -> bool:
            return pauses.stop(name) is not None

        names = {*self.tables, *pauses.names()} - {DEFAULT}
        tables = {name: {**self.tables.get(name, {}), PAUSED: stopped(name)} for name in names}
        return Policy(msgspec.structs.replace(self.default, paused=stopped(DEFAULT)), tables, pauses)

    def _paused_keys(self) -> dict[str, bool]:
        keys = {name: table[PAUSED] for name, table in self.tables.items() if PAUSED in table}
        return {**keys, DEFAULT: True} if self.default.paused else keys

    def named(self) -> Iterator[tuple[str, LanePolicy]]:
        """Yield every policy that a lane may have, with the name of its table in a file."""
        yield DEFAULT, self.default
        for name, policy in self._lanes.items():
            yield _where(name), policy


def parse_policy(text: str, digest: str = "", default_keys: Table = NO_KEYS) -> Policy:
    """Parse the text of a policy file; raises PolicyError, which names every fault.

    default_keys: replace or add keys of the default table. digest: of the text and these keys.
    """
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise PolicyError("not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise PolicyError(f"not TOML: {error}") from None
    unknown = sorted(found.keys() - {DEFAULT, "host"})
    errors = [f'unknown table [{name}]; there are [default] and [host."NAME"]' for name in unknown]
    hosts = found.get("host", {})
    if not isinstance(hosts, dict):
        errors.append('[host] holds tables; write [host."NAME"]')
        hosts = {}
    tables: dict[str, Table] = {}
    for name, table in hosts.items():
        try:
            lane = lane_named(name)
        except PolicyError as error:
            errors.append(str(error))
            continue
        if lane in tables:
            errors.append(f'[host."{name}"] names {lane} a second time')
        errors += _faults(_where(name), table)
        tables[lane] = table
    default = found.get(DEFAULT, {})
    if isinstance(default, dict):
        default = {**default, **default_keys}
    errors += _faults(DEFAULT, default)
    if errors:
        raise PolicyError("\n".join(errors))
    return Policy(_lane_policy(DEFAULT, default), tables, default_table=default, digest=digest)


def _faults(where: str, table: object) -> list[str]:
    """Return every fault of a table; each found key is removed before the next check."""
    if not isinstance(table, dict):
        return [f"[{where}] is no table"]
    faults: list[str] = []
    left = dict(table)
    while fault := _fault(where, left):
        faults.append(fault)
        culprits = [
            key for key in left if _fault(where, {k: v for k, v in left.items() if k != key}) != fault
        ]
        if not culprits:
            break
        del left[culprits[0]]
    return faults


def _fault(where: str, table: Table) -> str | None:
    try:
        if where == DEFAULT:
            shown = [key for key in ONE_HOSTS if table.get(key)]
            _refuse(shown, where, table, "would be shown to every host; set it for some hosts")
        _lane_policy(where, table)
    except PolicyError as error:
        return str(error)
    return None


def _differing(policy: LanePolicy) -> Table:
    """Return the keys that differ from the built-in defaults."""
    built_in = msgspec.structs.asdict(LanePolicy())
    return {key: value for key, value in msgspec.structs.asdict(policy).items() if value != built_in[key]}


def _where(name: str) -> str:
    """Return the table's name as a file spells it."""
    return DEFAULT if name == DEFAULT else f'host."{name}"'


def _refuse(keys: Iterable[str], where: str, table: Table, why: str) -> None:
    for key in keys:
        if key in table:
            raise PolicyError(f"[{where}] {key}: {why}")


def _lane_policy(where: str, values: object) -> LanePolicy:
    try:
        return msgspec.convert(values, LanePolicy)
    except (msgspec.ValidationError, PolicyError) as error:
        raise PolicyError(f"[{where}] {error}") from None
