"""The rights of a Redis user, by `ACL DRYRUN` of every command of the server, on any key."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import redis
from hiredis import pack_command

_WORDS_BEHIND_KEYS = {
    **dict.fromkeys(("zunion", "zinter", "zdiff", "zintercard", "sintercard"), ()),
    **dict.fromkeys(("lmpop", "blmpop"), ("left",)),
    **dict.fromkeys(("zmpop", "bzmpop"), ("min",)),
    **dict.fromkeys(("eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"), ()),
}
"""Commands with an argument for the number of keys; the words that follow the keys."""

_WORD_BEFORE_NUMBER_OF_KEYS = {
    "blmpop",
    "bzmpop",
    "eval",
    "evalsha",
    "eval_ro",
    "evalsha_ro",
    "fcall",
    "fcall_ro",
}


class ServerCommand(NamedTuple):
    """A command or subcommand, as COMMAND describes it."""

    name: str
    arity: int
    flags: frozenset[str]
    """`readonly`, `write` and others."""
    first_key: int
    last_key: int
    step: int

    @property
    def takes_keys(self) -> bool:
        """True if the command names keys."""
        return self.first_key > 0 or "movablekeys" in self.flags

    def on(self, key: str) -> list[str]:
        """Return the words of a call that names this key in the place of every key."""
        words = self.name.split("|")
        match self.name:
            case "xread":
                return [*words, "streams", key, "0"]
            case "xreadgroup":
                return [*words, "group", "g", "c", "streams", key, ">"]
            case "zunionstore" | "zinterstore" | "zdiffstore":
                return [*words, key, "1", key]
            case name if name in _WORDS_BEHIND_KEYS:
                before = ["0"] if name in _WORD_BEFORE_NUMBER_OF_KEYS else []
                return [*words, *before, "1", key, *_WORDS_BEHIND_KEYS[name]]
        words += ["0"] * (max(abs(self.arity), self.first_key + 1) - len(words))
        if self.first_key:
            last = self.last_key if self.last_key >= 0 else len(words) + self.last_key
            for place in range(self.first_key, last + 1, self.step):
                words[place] = key
        return words


def server_commands(admin: "redis.Redis") -> list[ServerCommand]:
    """Return every command of the server; the subcommands instead of a command that has them."""
    found = admin.execute_command("COMMAND")  # type: ignore[no-untyped-call]
    return list(itertools.chain.from_iterable(_parts(info) for info in found.values()))


def _parts(info: dict[str, Any]) -> Iterator[ServerCommand]:
    places = info["first_key_pos"], info["last_key_pos"], info["step_count"]
    if not info["subcommands"]:
        yield ServerCommand(info["name"], info["arity"], frozenset(info["flags"]), *places)
    for name, arity, flags, *rest in info["subcommands"]:
        yield ServerCommand(name, arity, frozenset(flags), *rest[:3])


def allowed(admin: "redis.Redis", user: str, calls: Sequence[Sequence[str]]) -> list[bool]:
    """Return whether Redis would let the user make each call."""
    connection = admin.connection_pool.get_connection()
    try:
        packed = [pack_command(("ACL", "DRYRUN", user, *words)) for words in calls]  # type: ignore[arg-type]
        connection.send_packed_command([b"".join(packed)])
        return [connection.read_response() in {"OK", b"OK"} for _ in packed]
    finally:
        admin.connection_pool.release(connection)
