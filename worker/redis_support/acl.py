"""The Redis users of a fleet as ACL rules: the commands and keys of each.

Scripts run with the rights of their caller. A user that may write lanes and run EVAL can therefore bypass the
checks of the scripts, and can block Redis. Producer, worker and operator can, so they must be trusted. Pusher
and reader need no trust: they have no EVAL, and access to a few keys only.

ops/users.acl is the output of `template()`.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.ids import BATCH_ID_CHARS, RESERVED_INBOX_NAMES, inbox_prefix, is_inbox_name

PLACEHOLDER = "#SHA256"
"""Stands for the digest of a password in ops/users.acl. Redis refuses to load a file with it."""

ANY_BATCH = "?" * BATCH_ID_CHARS


class Grant(NamedTuple):
    """A permission of a user."""

    commands: str
    """The commands, separated by spaces."""
    keys: tuple[str, ...] = ()
    """Patterns of the keys or channels to which the commands may be applied; empty for commands of none."""

    @property
    def rule(self) -> str:
        """The grant as an ACL rule: a selector if it has keys."""
        commands = " ".join(f"+{command}" for command in self.commands.split())
        return f"({' '.join(self.keys)} {commands})" if self.keys else commands


class Role(NamedTuple):
    """A Redis user of a fleet."""

    name: str
    may: str
    """The permitted work in words, after "may"."""
    is_trusted: bool
    """True if the user may write lanes, and could therefore forge fetches."""
    grants: tuple[Grant, ...]

    def line(self, password_digest: str = PLACEHOLDER) -> str:
        """Return the line of the user in an ACL file. password_digest: `#` and the SHA-256 in hex."""
        base = f"user {self.name} reset on {password_digest} {' '.join(CONNECTION)}"
        return " ".join([base, *(grant.rule for grant in self.grants)])


CONNECTION = ("+@connection", "-@dangerous", "-client|tracking")
"""The commands that every client needs, from HELLO on. CLIENT TRACKING would reveal the names of all keys."""


def channel(name: str) -> tuple[str, ...]:
    """Return the pattern of a Pub/Sub channel, and of no other, whatever `acl-pubsub-default` is."""
    return "resetchannels", f"&{name}"


def both(*names: str) -> tuple[str, ...]:
    """Return the patterns of keys that are read and written."""
    return tuple(f"~{name}" for name in names)


def read(*names: str) -> tuple[str, ...]:
    """Return the patterns of keys that are read only."""
    return tuple(f"%R~{name}" for name in names)


def write(*names: str) -> tuple[str, ...]:
    """Return the patterns of keys that are written only."""
    return tuple(f"%W~{name}" for name in names)


_EARLIER = "hincrby"
"""Commands of the scripts of earlier versions, which may run beside this one."""

_OURS, _ARQS = keys.PREFIX + "*", keys.ARQ_PREFIX + "*"

_ENQUEUE = (
    Grant("time multi exec unwatch script|load"),
    Grant("type", read(_OURS)),
    Grant("eval evalsha", both(_OURS)),
    Grant(
        f"exists del pexpire hget hmget hset hsetnx lindex rpush sadd smembers {_EARLIER}",
        both(keys.batch(ANY_BATCH), keys.batch_lanes(ANY_BATCH), keys.digests(ANY_BATCH)),
    ),
    Grant("exists bitfield bitpos pexpire unlink", both(keys.record(ANY_BATCH) + "*")),
    Grant("xread", read(keys.results(ANY_BATCH))),
    Grant("zrevrange zadd zrem", both(keys.BATCHES)),
    Grant("get set del", both(keys.key("*"))),
    Grant("get incr incrby", both(keys.SERIAL, keys.BACKLOG, keys.CANCELS)),
    Grant(f"hget hmget hset hdel persist {_EARLIER}", both(keys.lane("*"))),
    Grant("rpush lrem", write(keys.waiting_at("*", "*"))),
    Grant("sadd pexpire", write(keys.cancelled("*"))),
    Grant("zadd", write(keys.ATTENTION, keys.WEBHOOKS)),
    Grant("zadd zscore", both(keys.QUEUE)),
    Grant(
        "watch exists psetex get",
        (*write(keys.arq_job("*")), *read("arq:result:*", "arq:in-progress:*")),
    ),
)

_READS = (
    "type exists ttl pttl memory|usage get mget strlen hget hmget hgetall hexists hlen llen lindex lrange"
    " scard smembers zcard zscore zrange zrevrange zrangebyscore"
    " xlen xrange xrevrange xread xinfo|groups xinfo|stream"
)
"""Commands of the operator for reading, including those useful in redis-cli."""

PRODUCER = Role(
    "producer",
    "enqueue and cancel, list batches, read their counts and results; it is trusted, as workers are",
    is_trusted=True,
    grants=_ENQUEUE,
)


def pusher(name: str) -> Role:
    """Return the user of a named inbox. Both have the same name. Raises ValueError for an invalid name."""
    if not is_inbox_name(name) or name in _NO_PUSHERS:
        raise ValueError(
            f"{name!r} is not a valid inbox name: use at most 32 lower-case letters, digits and hyphens, and"
            f" none of {', '.join(sorted(RESERVED_INBOX_NAMES | _NO_PUSHERS))}"
        )
    own = inbox_prefix(name).ljust(BATCH_ID_CHARS, "?")
    return Role(
        name,
        "push messages to its inbox, and read the receipts, counts and results of its own batches",
        is_trusted=False,
        grants=(
            Grant("rpush", write(keys.inbox(name))),
            Grant("exists hget hmget hgetall", read(keys.batch(own))),
            Grant("xread xrange xlen", read(keys.results(own))),
            Grant("get", read(keys.receipt(own), keys.receipt(own, "*"))),
        ),
    )


READER = Role(
    "reader",
    "read the stream of all results",
    is_trusted=False,
    grants=(
        Grant(
            "xreadgroup xack xautoclaim xpending xgroup|create xinfo|stream xinfo|groups xinfo|consumers",
            both(keys.ALL_RESULTS),
        ),
    ),
)
WORKER = Role(
    "worker",
    "run a worker and check its health",
    is_trusted=True,
    grants=(
        Grant("time info dbsize script|load multi exec unwatch scan"),
        Grant(
            "eval evalsha watch type exists del unlink expire pexpire persist"
            " get mget getrange strlen set setex psetex incr incrby bitfield bitfield_ro bitpos"
            " hget hmget hset hsetnx hdel hexists hlen hkeys hstrlen hvals hgetall"
            " rpush lpush lpop lrange lindex llen lrem lset blmove sadd srem scard sscan smembers"
            " zadd zrem zscore zcard zcount zrange zrangebyscore zremrangebyscore zincrby"
            f" xadd xlen xrange xtrim xpending xinfo|groups {_EARLIER} zrandmember",
            both(_OURS, _ARQS),
        ),
        Grant("publish", channel(keys.EVENTS)),
    ),
)
OPERATOR = Role(
    "operator",
    "do all that producer may, look at the whole fleet, steer it, and handle dead letters",
    is_trusted=True,
    grants=(
        *_ENQUEUE,
        Grant("scan"),
        Grant(_READS, read(_OURS, _ARQS)),
        Grant("xdel", both(keys.DEAD)),
        Grant("hset hdel incrby", both(keys.POLICY, keys.POLICY_VERSION)),
        Grant("incrby", both(keys.RESETS)),
        Grant("hset hdel", both(keys.DRAINS)),
        Grant("sadd srem", both(keys.INBOXES)),
        Grant("zadd", write(keys.later("*"))),
        Grant("xtrim", both(keys.results(ANY_BATCH))),
        Grant("set", write(keys.WATCHED)),
        Grant("subscribe", channel(keys.EVENTS)),
    ),
)
_NO_PUSHERS = {"default", PRODUCER.name, READER.name, WORKER.name, OPERATOR.name}

_NAMED = pusher("pusher")
PUSHER = _NAMED._replace(grants=(Grant("rpush", write(keys.INBOX)), *_NAMED.grants))
"""The user `pusher` has the shared inbox too. Only producers can read the results of its batches."""

ROLES = (PRODUCER, PUSHER, READER, WORKER, OPERATOR)


class Credentials(NamedTuple):
    """A user and its password."""

    user: str
    password: str

    @property
    def digest(self) -> str:
        """The password as in an ACL file: `#` and its SHA-256 in hex."""
        return "#" + hashlib.sha256(self.password.encode()).hexdigest()


def new_credentials(user: str) -> Credentials:
    """Return a random password of 160 bits in hex: it needs no slow hash, and no escaping in a URL."""
    return Credentials(user, secrets.token_hex(20))


def roles(pushers: Sequence[Role]) -> list[Role]:
    """Return ROLES, with the given pushers instead of PUSHER if any are given."""
    return [PRODUCER, *(pushers or [PUSHER]), READER, WORKER, OPERATOR]


def template(users: Iterable[Role] = ROLES) -> str:
    """Return an ACL file with placeholders for passwords, by default ops/users.acl."""
    return _file(role.line() for role in users)


def with_passwords(credentials: Mapping[Role, Credentials]) -> str:
    """Return an ACL file with the digests of the passwords."""
    return _file(role.line(of.digest) for role, of in credentials.items())


def renewed(file: str) -> str:
    """Return an ACL file in which the users of a fleet have the rights of this version.

    They keep their passwords. All other lines, and therefore other users, stay unchanged.
    """
    return "".join(f"{_renewed_line(line)}\n" for line in file.splitlines())


def _renewed_line(line: str) -> str:
    words = [word.strip("()") for word in line.split()]
    role = _role_of(words)
    if role is None:
        return line
    credentials = [word for word in words if word.startswith(("#", ">")) or word in {"nopass", "off"}]
    return role.line(" ".join(credentials))


def _role_of(words: Sequence[str]) -> Role | None:
    """Return the role of a line of an ACL file; None if it defines no user of a fleet."""
    match words:
        case ["user", name, *rules]:
            pass
        case _:
            return None
    if name == PUSHER.name and not set(rules).isdisjoint(write(keys.INBOX)):
        return PUSHER
    for role in ROLES:
        if role is not PUSHER and role.name == name:
            return role
    is_pusher = is_inbox_name(name) and not set(rules).isdisjoint(write(keys.inbox(name)))
    return pusher(name) if is_pusher else None


def _file(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in ["user default off", *lines])
