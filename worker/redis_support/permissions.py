"""Error messages for denied commands: which Redis user was denied what, and which user to use."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit

from redis.exceptions import NoPermissionError

from fetchfleet.worker.observability import redact
from fetchfleet.worker.redis_support import acl
from fetchfleet.worker.redis_support.errors import DeniedError

ROLES = {role.name: role.may for role in acl.ROLES}
"""The permitted work of each user of ops/users.acl, in words."""

_NEEDS = {
    **dict.fromkeys(("submit", "batches", "results", "cancel"), acl.PRODUCER.name),
    **dict.fromkeys(("run", "worker", "health"), acl.WORKER.name),
}
_VIA_INBOX = {"submit", "results", "cancel"}
_CONDITIONS = {
    acl.PRODUCER.name: "is as trusted as a worker",
    acl.OPERATOR.name: "is as trusted as a worker",
    acl.WORKER.name: "is a worker",
}
_DENIED = re.compile(r"run the '([^']+)' command")
_USER = re.compile(r"\bUser (\S+) has no permissions")


def needed_for(command: str) -> str:
    """Return the user of ops/users.acl that a command needs."""
    return _NEEDS.get(command.partition(" ")[0], acl.OPERATOR.name)


def user_of(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the Redis user in the arguments or the environment of a command; empty if the URL is invalid."""
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
    """Return the denial among the causes of an error; None if there is none."""
    while error is not None:
        if isinstance(error, DeniedError):
            return error
        if isinstance(error, NoPermissionError):
            match = _USER.search(str(error))
            return DeniedError(match[1] if match else "", str(error))
        error = error.__cause__
    return None


def explained(command: str, denial: DeniedError) -> str:
    """Return the message for a command that was denied: what was denied, and which user to use instead."""
    match = _DENIED.search(denial.message)
    denied = f"may not run {match[1]}" if match else f"is refused: {redact.text(denial.message).strip('.')}"
    needed = needed_for(command)
    if denial.user == needed:
        remedy = (
            f"The user {needed} of this version of fetchfleet may: fetchfleet acl --keep users.acl prints"
            " your file of users with the rights of this version; load that file in Redis"
        )
    else:
        own = f" ({denial.user} may {ROLES[denial.user]})" if denial.user in ROLES else ""
        remedy = (
            f"The user {needed} of ops/users.acl may{own}: name it in the URL, redis://{needed}:PASSWORD@…"
            f" (--redis, FETCHFLEET_REDIS_URL), if this program {_CONDITIONS[needed]}"
        )
        if command in _VIA_INBOX and denial.user not in ROLES.keys() - {acl.PUSHER.name}:
            remedy += ". A user with an inbox can use --via inbox"
    user = f"the Redis user {denial.user}" if denial.user else "this Redis user"
    return f"{command}: {user} {denied}. {remedy}. docs/security.md lists what each user may do"
