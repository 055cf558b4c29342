"""Hypothesis strategies for writes of another program to the keys of a fleet.

Some values are nearly valid. The writes add and falsify entries. They do not remove or replace entries of the
fleet's own fetches.
"""

from collections.abc import Sequence

import msgspec
from hypothesis import strategies as st

from fetchfleet import Fetch
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, Hop, serialize_entry
from fetchfleet.jobs.contract.ids import fetch_id

HOSTS = ("127.0.0.231", "127.0.0.232", "127.0.0.233")
LARGE_BYTES = 6 << 20
COUNTERS = (keys.SERIAL, keys.BACKLOG, keys.POLICY_VERSION, keys.CANCELS, keys.RESETS)
LANE_FIELDS = (
    *(
        "state",
        "generation",
        "due_ms",
        "shut_until_ms",
        "why",
        "owner",
        "last_owner",
        "token",
        "gate",
        "open",
    ),
    *("earliest_ms", "needs", "reset", "estimated", "surprise"),
)
FORGED = "/forged"
"""The path that only forged fetches request."""


class Large(msgspec.Struct, frozen=True):
    """A value of LARGE_BYTES."""


class Change(msgspec.Struct, frozen=True):
    """Bytes that overwrite those at an offset of a value."""

    at: int
    replacement: bytes

    def apply(self, value: bytes) -> bytes:
        """Return the changed value."""
        return value[: self.at] + self.replacement + value[self.at + len(self.replacement) :]


class ForgedEntry(msgspec.Struct, frozen=True):
    """An entry of a lane that was never submitted."""

    batch: str
    """`known` for the batch of fetches that may wait, `unknown`, or `malformed`."""
    place: int
    """Index in the batch."""
    host: int
    """Index in HOSTS."""
    deadline_in_ms: int
    """Time from now to the deadline; negative if it has passed."""
    counters: dict[str, int]
    hop_to: int | None
    """Index in HOSTS of a redirect's target."""
    change: Change | None

    def serialized(self, batch_id: str, origins: Sequence[str], now_ms: int) -> bytes:
        """Return the entry. origins: of HOSTS, such as http://127.0.0.1:8080."""
        ids = {"known": batch_id, "unknown": "abcdefabcdefabcd", "malformed": "a" * 16}
        hop = None
        if self.hop_to is not None:
            hop = Hop("POST", origins[self.hop_to] + FORGED, body_file="../../../etc/passwd")
        made = serialize_entry(
            Entry(
                id=fetch_id(ids[self.batch], self.place),
                deadline_ms=max(0, now_ms + self.deadline_in_ms),
                fetch=Fetch(url=origins[self.host] + FORGED),
                hop=hop,
                hops=int(hop is not None),
                **self.counters,  # type: ignore[arg-type]
            )
        )
        if self.batch == "malformed":
            made = b"g" + made[1:]
        return made if self.change is None else self.change.apply(made)


class Write(msgspec.Struct, frozen=True):
    """A Redis command."""

    command: str
    key: str
    values: tuple[bytes | str | int | float | ForgedEntry | Large, ...]
    of_batch: bool = False
    """True if `key` is a suffix of the key of the last batch."""


class Copy(msgspec.Struct, frozen=True):
    """The waiting entries of a lane, pushed to a lane once more."""

    lane: str
    to: str
    change: Change | None


changes = st.builds(Change, st.integers(0, 300), st.binary(max_size=2))
numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.sampled_from(["", "nan", "inf", "-inf", "1e300", "-1", "0", "00", "0x10", "9" * 400]),
)
texts = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=30).map(lambda text: text.encode(errors="replace")),
    numbers.map(str.encode),
    st.sampled_from(
        [b"{}", b"[]", b"null", b'{"v":9}', b"[" * 5000, b"\x80\x04N.", b"held", b"scheduled", b"idle"]
    ),
    st.just(Large()),
)
scores = st.one_of(
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -1.0, float("inf"), float("-inf"), 2.0**60]),
)
forged = st.builds(
    ForgedEntry,
    batch=st.sampled_from(["known", "unknown", "malformed"]),
    place=st.integers(0, 20),
    host=st.integers(0, len(HOSTS) - 1),
    deadline_in_ms=st.sampled_from([-(10**9), -1000, 0, 1000, 86_400_000, 10**11]),
    counters=st.sampled_from(
        [{}, {"attempts": 99}, {"crashes": 3, "interruptions": 3}, {"throttles": 7}, {"attempts": -10}]
    ),
    hop_to=st.one_of(st.none(), st.integers(0, len(HOSTS) - 1)),
    change=st.one_of(st.none(), changes),
)
values = st.one_of(forged, texts)

hosts = st.sampled_from(HOSTS)
lists = st.one_of(
    st.builds(keys.waiting_at, hosts, st.sampled_from(["returned", "high", "normal", "low"])),
    st.sampled_from([keys.INBOX, keys.TAKEN, keys.NEWER]),
)
sorted_sets = st.sampled_from([keys.QUEUE, keys.ATTENTION, keys.BATCHES, keys.DEATHS, keys.WORKERS])
hashes = st.sampled_from([keys.INTAKE, keys.POLICY, keys.DRAINS, keys.HANDED])
strings = st.one_of(
    st.just("surprise").map(keys.key),
    st.builds(lambda host: keys.robots(f"http://{host}"), hosts),
    st.sampled_from(["w", "x" * 300]).map(keys.worker),
    st.just("0" * 16).map(keys.policy_file),
    st.sampled_from(["z1", "lane:x:1", "cron:sweep:1"]).map(keys.arq_job),
    st.just(keys.SWEPT),
    st.just(keys.STATUS_LOGGED),
)
streams = st.sampled_from([keys.DEAD, keys.ALL_RESULTS])
lanes = st.one_of(hosts, st.binary(max_size=60).map(lambda name: name.decode("latin-1")))
of_any_kind = st.one_of(
    lists, sorted_sets, hashes, strings, streams, st.builds(keys.later, hosts), st.builds(keys.claimed, hosts)
)


def _write(
    command: str, key: st.SearchStrategy[str], *rest: st.SearchStrategy[object], of_batch: bool = False
) -> st.SearchStrategy[Write]:
    return st.builds(Write, st.just(command), key, st.tuples(*rest), st.just(of_batch))


_any_id = st.just("*")
writes: st.SearchStrategy[Write | Copy] = st.one_of(
    _write("RPUSH", lists, values),
    _write("LPUSH", lists, values),
    _write("ZADD", st.builds(keys.later, hosts), scores, values),
    _write("ZADD", sorted_sets, scores, st.one_of(texts, hosts)),
    _write("HSETNX", st.builds(keys.claimed, hosts), texts, values),
    _write("HSET", hashes, texts, texts),
    _write("HSET", st.builds(keys.lane, lanes), st.sampled_from(LANE_FIELDS), texts),
    _write("SADD", st.builds(keys.cancelled, hosts), texts),
    _write("SADD", st.sampled_from([keys.INBOXES, keys.LACKING]), texts),
    _write("SET", st.sampled_from(COUNTERS), texts),
    _write("INCRBY", st.sampled_from(COUNTERS), st.sampled_from([2**62, -(2**62), 99 * 10**16, 1])),
    _write("XADD", streams, _any_id, st.sampled_from(["r", "element"]), texts),
    _write("SETNX", of_any_kind, texts),
    _write("RPUSH", st.just(":digests"), texts, of_batch=True),
    _write("SADD", st.just(":lanes"), texts, of_batch=True),
    _write("XADD", st.just(":results"), _any_id, st.sampled_from(["r", "q"]), texts, of_batch=True),
    _write("HSET", st.just(""), st.just("surprise"), texts, of_batch=True),
    _write("SETRANGE", st.just(":fetches"), st.integers(400, 4000), texts, of_batch=True),
    st.builds(Copy, hosts, hosts, st.one_of(st.none(), changes)),
)
