"""The commands about the Redis users of a fleet and their inboxes: acl and inbox."""

import os
from pathlib import Path
from typing import Annotated

import typer
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.client.fleet import Fleet
from fetchfleet.jobs.contract.ids import inbox_prefix, is_inbox_name
from fetchfleet.jobs.redis_connection import text_of
from fetchfleet.worker.cli.common import console, echo, echo_lines, print_json, query
from fetchfleet.worker.cli.options import Json, RedisUrl
from fetchfleet.worker.cli.render import count
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.intake.inbox import MAX_INBOXES
from fetchfleet.worker.redis_support import acl as users
from fetchfleet.worker.redis_support.acl import Credentials, Role

Passwords = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write each user with its password to this new file, which its owner alone can read, and not on"
        " standard error.",
    ),
]
Pushers = Annotated[
    list[str] | None,
    typer.Option(
        "--pusher",
        metavar="NAME",
        help="Make a user of this name, with an inbox of its own, in place of the user pusher. Repeatable.",
    ),
]
User = Annotated[
    bool, typer.Option("--user", help="Print a line for Redis's file of users as well, with a new password.")
]
Template = Annotated[bool, typer.Option("--template", help="Without passwords, as ops/users.acl.")]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Print this file of an earlier version with the rights of this one. Passwords stay as they are,"
        " and so do users that are not of a fleet.",
    ),
]


Name = Annotated[str, typer.Argument(help="The inbox's name: that of its Redis user.")]

inbox = typer.Typer(name="inbox", help="Inboxes of producers that need not be trusted.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    app.command()(acl)
    app.add_typer(inbox)


@inbox.command("add")
def inbox_add(
    name: Name,
    redis: RedisUrl = None,
    user: User = False,  # noqa: FBT002 a flag
    passwords: Passwords = None,
) -> None:
    """Register an inbox: the workers begin to empty it within a second.

    With --user, print its Redis user as well: fetchfleet inbox add NAME --user >> users.acl
    """
    role = _pusher(name)

    async def add(_: Fleet, client: Redis) -> bool:
        if await client.scard(keys.INBOXES) >= MAX_INBOXES:  # type: ignore[misc]
            return False
        await client.sadd(keys.INBOXES, name)  # type: ignore[misc]
        return True

    if not query(redis, add):
        raise CommandError(f"{MAX_INBOXES} inboxes are registered, which is the most; remove one first")
    told = f"{name}: messages go to {keys.inbox(name)}, and its batch ids begin with {inbox_prefix(name)}"
    if not user:
        echo(told)
        return
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    credentials = users.new_credentials(name)
    _hand_over(passwords, [credentials])
    echo(role.line(credentials.digest))


@inbox.command("remove")
def inbox_remove(name: Name, redis: RedisUrl = None) -> None:
    """Unregister an inbox: the workers leave its messages where they are."""
    _pusher(name)

    async def remove(_: Fleet, client: Redis) -> tuple[int, int]:
        removed = await client.srem(keys.INBOXES, name)  # type: ignore[misc]
        return int(removed), await _messages(client, name)

    removed, left = query(redis, remove)
    if not removed:
        raise CommandError(f"no inbox {name} is registered; see: fetchfleet inbox list")
    if left:
        console.print(f"left in {keys.inbox(name)}: {count(left, 'message')}", highlight=False)


@inbox.command("list")
def inbox_list(redis: RedisUrl = None, as_json: Json = False) -> None:  # noqa: FBT002 a flag
    """List the registered inboxes."""

    async def read(_: Fleet, client: Redis) -> dict[str, int]:
        names = sorted(map(text_of, await client.smembers(keys.INBOXES)))  # type: ignore[misc]
        return {name: await _messages(client, name) for name in names if is_inbox_name(name)}

    for name, messages in query(redis, read).items():
        if as_json:
            print_json({"name": name, "prefix": inbox_prefix(name), "messages": messages})
        else:
            echo(f"{name}  {inbox_prefix(name)}  {count(messages, 'message')}")


async def _messages(client: Redis, name: str) -> int:
    """Return how many messages of the inbox no worker has enqueued or refused."""
    lists = (keys.inbox(name), keys.taken(name), keys.newer(name))
    return sum([int(await client.llen(key)) for key in lists])  # type: ignore[misc]


def acl(
    pusher: Pushers = None,
    passwords: Passwords = None,
    template: Template = False,  # noqa: FBT002 a flag
    keep: Keep = None,
) -> None:
    """Print an ACL file for Redis: a user for each part of a fleet, with new passwords.

    The file holds digests only. The passwords are shown once, on standard error.
    """
    if keep is not None:
        if pusher or passwords or template:
            raise CommandError("--keep goes with no other option", BAD_USE)
        echo_lines(users.renewed(_text_of(keep)).rstrip("\n"))
        return
    roles = users.roles([_pusher(name) for name in dict.fromkeys(pusher or [])])
    if template:
        echo_lines(users.template(roles).rstrip("\n"))
        return
    credentials = {role: users.new_credentials(role.name) for role in roles}
    _hand_over(passwords, [*credentials.values()])
    echo_lines(users.with_passwords(credentials).rstrip("\n"))


def _text_of(file: Path) -> str:
    """Return what is in an ACL file. Raises CommandError if it cannot be read or has no user."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {getattr(error, 'strerror', None) or error}", BAD_USE) from None
    if not any(line.startswith("user ") for line in text.splitlines()):
        raise CommandError(f"{file}: has no line that begins with user: give an ACL file of Redis", BAD_USE)
    return text


def _pusher(name: str) -> Role:
    """Return the Redis user of an inbox. Raises CommandError for a name that it may not have."""
    try:
        return users.pusher(name)
    except ValueError as error:
        raise CommandError(str(error), BAD_USE) from None


def _hand_over(file: Path | None, credentials: list[Credentials]) -> None:
    """Write each user with its password to a new file of mode 600, else on standard error."""
    text = "".join(f"{user} {password}\n" for user, password in credentials)
    if file is None:
        typer.echo(text, err=True, nl=False)
        return
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", BAD_USE) from None
    with os.fdopen(handle, "w") as opened:
        opened.write(text)
