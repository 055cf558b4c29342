"""The Redis users of ops/users.acl, and the refusal of a command in words: which user may."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit

from redis.exceptions import NoPermissionError

from fetchfleet.worker.observability import redact
from fetchfleet.worker.redis_support import acl
from fetchfleet.worker.redis_support.errors import DeniedError

ROLES = {role.name: role.may for role in acl.ROLES}
"""The rights of each user of ops/users.acl."""

_NEEDS = {
    **dict.fromkeys(("submit", "batches", "results", "cancel"), acl.PRODUCER.name),
    **dict.fromkeys(("run", "worker", "health"), acl.WORKER.name),
}
_VIA_INBOX = {"submit", "results", "cancel"}
_TRUST = {
    acl.PRODUCER.name: "is trusted as workers are",
    acl.OPERATOR.name: "is trusted as workers are",
    acl.WORKER.name: "is a worker",
}
_DENIED = re.compile(r"run the '([^']+)' command")
_USER = re.compile(r"\bUser (\S+) has no permissions")


def needed_for(command: str) -> str:
    """Return the user of ops/users.acl that a command needs."""
    return _NEEDS.get(command.partition(" ")[0], acl.OPERATOR.name)


def user_of(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the Redis user of a command's arguments and environment; empty if its URL cannot be read."""
    url = environment.get("FETCHFLEET_REDIS_URL", "")
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--redis="):
            url = argument.removeprefix("--redis=")
        elif argument == "--redis":
            url = value
    try:
        return unquote(urlsplit(url).username or "default")
    except ValueError:
        return ""


def denial_in(error: BaseException | None) -> DeniedError | None:
    """Return the refusal that caused an error; None if it has another cause."""
    while error is not None:
        if isinstance(error, DeniedError):
            return error
        if isinstance(error, NoPermissionError):
            found = _USER.search(str(error))
            return DeniedError(found[1] if found else "", str(error))
        error = error.__cause__
    return None


def explained(command: str, denial: DeniedError) -> str:
    """Return which user was denied what by a command, which user may, and how to become that one."""
    found = _DENIED.search(denial.message)
    denied = f"may not run {found[1]}" if found else f"is refused: {redact.text(denial.message).strip('.')}"
    needed = needed_for(command)
    if denial.user == needed:
        remedy = (
            f"The user {needed} of this version of fetchfleet may: fetchfleet acl --keep users.acl prints"
            " your file of users with the rights of this version; let Redis load that"
        )
    else:
        own = f" ({denial.user} may {ROLES[denial.user]})" if denial.user in ROLES else ""
        remedy = (
            f"The user {needed} of ops/users.acl may{own}: name it in the URL, redis://{needed}:PASSWORD@…"
            f" (--redis, FETCHFLEET_REDIS_URL), if what runs here {_TRUST[needed]}"
        )
        if command in _VIA_INBOX and denial.user not in ROLES.keys() - {acl.PUSHER.name}:
            remedy += ". A user with an inbox: --via inbox"
    user = f"the Redis user {denial.user}" if denial.user else "this Redis user"
    return f"{command}: {user} {denied}. {remedy}. docs/security.md lists what each user may do"
