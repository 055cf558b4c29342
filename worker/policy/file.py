"""The policy of every host: a default table and tables by host, from a TOML file or set at run time.

    [default]
    concurrency = 8

    [host."api.example.com"]
    rate_per_s = 5

    [host."*.cdn.net"]
    concurrency = 32

For each key, the most specific table that has it counts: that of the host, then the longest pattern, then
the default. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from fetchfleet.worker.policy.model import LanePolicy, PolicyError, PolicyFault
from fetchfleet.worker.policy.names import DEFAULT, covers, lane_named
from fetchfleet.worker.policy.pauses import PAUSED, Overrides, PauseMark, Pauses, Table, pauses_of

FILE_ONLY = ("ca_file", "client_cert", "client_key", "verify", "https_to_http", "redirect_bodies")
"""Keys that name files on the disk of a worker, or weaken its protection. Redis must not set them."""

NO_KEYS: Table = MappingProxyType({})

NOT_IN_DEFAULT = ("client_cert", "client_key")
"""Keys of a client certificate. It must not be presented to every host."""


class Policy:
    """The policy of every lane."""

    def __init__(
        self,
        default: LanePolicy | None = None,
        tables: Mapping[str, Table] | None = None,
        pauses: Pauses | None = None,
        *,
        default_table: Table | None = None,
        digest: str = "",
    ) -> None:
        """Compute the policy of each table.

        default: the built-in defaults if None. default_table: derived from `default` if None. pauses: those
        of the tables if None.
        """
        self.default = default or LanePolicy()
        """The policy of hosts without a table."""
        self.tables = dict(tables or {})
        """The keys of each table, by host or pattern."""
        self.default_table = _differing(self.default) if default_table is None else default_table
        """The keys of the default table."""
        self.digest = digest
        """The digest of the policy file; empty without a file."""
        self.pauses = pauses or Pauses({}, {}, (), self._paused_keys())
        """The pauses in force, from the file and set at run time."""
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
        """Return the policy of a lane: that of its host, else of the longest pattern, else the default."""
        if name in self._lanes:
            return self._lanes[name]
        for suffix in self._suffixes:
            if name.endswith(suffix):
                return self._lanes["*" + suffix]
        return self.default

    def overridden(
        self, overrides: Mapping[str, Table], marks: Mapping[str, PauseMark] | None = None
    ) -> "Policy":
        """Return a policy in which these tables override those of this one, key by key.

        overrides: by host, pattern or `default`. marks: which of them are pauses and exceptions
        (worker/policy/pauses.py). Raises PolicyError, also if they set FILE_ONLY keys, because they come from
        Redis.
        """
        for name, table in overrides.items():
            why = "cannot be set at run time; set it in the policy file of the workers"
            _refuse(FILE_ONLY, _where(name), table, why)
        default = _lane_policy(
            DEFAULT, {**msgspec.structs.asdict(self.default), **overrides.get(DEFAULT, {})}
        )
        names = {*self.tables, *overrides} - {DEFAULT}
        merged = Policy(
            default,
            {name: {**self.tables.get(name, {}), **overrides.get(name, {})} for name in sorted(names)},
        )
        return merged.with_pauses(self.pauses_with(Overrides(overrides, marks or {})))

    def pauses_with(self, overrides: Overrides) -> Pauses:
        """Return the pauses in force with these overrides, including those of the file."""
        return pauses_of(overrides, self.pauses.in_file)

    def with_pauses(self, pauses: Pauses) -> "Policy":
        """Return this policy with the key `paused` of every table replaced by these pauses."""

        def stopped(name: str) -> bool:
            return pauses.stop(name) is not None

        names = {*self.tables, *pauses.names()} - {DEFAULT}
        tables = {name: {**self.tables.get(name, {}), PAUSED: stopped(name)} for name in names}
        return Policy(msgspec.structs.replace(self.default, paused=stopped(DEFAULT)), tables, pauses)

    def _paused_keys(self) -> dict[str, bool]:
        keys = {name: table[PAUSED] for name, table in self.tables.items() if PAUSED in table}
        return {**keys, DEFAULT: True} if self.default.paused else keys

    def named(self) -> Iterator[tuple[str, LanePolicy]]:
        """Yield every policy that a lane may have, with the name of its table as in a policy file."""
        yield DEFAULT, self.default
        for name, policy in self._lanes.items():
            yield _where(name), policy


def parse_policy(text: str, digest: str = "", default_keys: Table = NO_KEYS) -> Policy:
    """Parse the text of a policy file. Raises PolicyError, which names every fault.

    default_keys: override keys of the default table. digest: of the text and of default_keys.
    """
    import tomllib  # noqa: PLC0415 needed for policy files only

    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise PolicyError("not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise PolicyError(f"not TOML: {error}") from None
    unknown = sorted(document.keys() - {DEFAULT, "host"})
    faults: list[PolicyFault | str] = [
        f'unknown table [{name}]; the tables are [default] and [host."NAME"]' for name in unknown
    ]
    hosts = document.get("host", {})
    if not isinstance(hosts, dict):
        faults.append('[host] must contain tables; write [host."NAME"]')
        hosts = {}
    tables: dict[str, Table] = {}
    for name, table in hosts.items():
        try:
            lane = lane_named(name)
        except PolicyError as error:
            faults += error.faults
            continue
        if lane in tables:
            faults.append(f'[host."{name}"] defines {lane} a second time; merge the two tables')
        faults += _faults(_where(name), table)
        tables[lane] = table
    default = document.get(DEFAULT, {})
    if isinstance(default, dict):
        default = {**default, **default_keys}
    faults += _faults(DEFAULT, default)
    if faults:
        raise PolicyError(*faults)
    return Policy(_lane_policy(DEFAULT, default), tables, default_table=default, digest=digest)


def _faults(where: str, table: object) -> list[PolicyFault]:
    """Return every fault of a table. msgspec reports one, so a key at fault is removed to find the next."""
    if not isinstance(table, dict):
        return [PolicyFault(f"[{where}] is not a table", where)]
    faults: list[PolicyFault] = []
    unchecked = dict(table)
    while message := _fault(where, unchecked):
        keys = tuple(
            key
            for key in unchecked
            if _fault(where, {k: v for k, v in unchecked.items() if k != key}) != message
        )
        faults.append(PolicyFault(message, where, keys))
        if not keys:
            break
        del unchecked[keys[0]]
    return faults


def _fault(where: str, table: Table) -> str | None:
    """Return the message of the first fault of a table."""
    try:
        if where == DEFAULT:
            refused = [key for key in NOT_IN_DEFAULT if table.get(key)]
            _refuse(refused, where, table, "would be presented to every host; set it in tables of hosts")
        _lane_policy(where, table)
    except PolicyError as error:
        return str(error)
    return None


def _differing(policy: LanePolicy) -> Table:
    """Return the keys that differ from the built-in defaults."""
    built_in = msgspec.structs.asdict(LanePolicy())
    return {key: value for key, value in msgspec.structs.asdict(policy).items() if value != built_in[key]}


def _where(name: str) -> str:
    """Return the name of a table as in a policy file, without its brackets."""
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
