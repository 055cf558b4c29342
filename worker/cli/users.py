"""The commands for the Redis users of a fleet and their inboxes: acl and inbox."""

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
from fetchfleet.worker.cli.options.shared import Json, RedisUrl
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.intake.inbox import MAX_INBOXES
from fetchfleet.worker.redis_support import acl as users
from fetchfleet.worker.redis_support.acl import Credentials, Role
from fetchfleet.worker.util.quantities import count

Passwords = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write users and passwords to this new file (mode 600), not to standard error.",
    ),
]
Pushers = Annotated[
    list[str] | None,
    typer.Option(
        "--pusher",
        metavar="NAME",
        help="Add a user with an inbox of its own, in place of the shared user pusher. Repeatable.",
    ),
]
User = Annotated[
    bool, typer.Option("--user", help="Print a line for the ACL file of Redis, with a new password.")
]
Template = Annotated[bool, typer.Option("--template", help="Leave out passwords, as in ops/users.acl.")]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Print this ACL file with the rights of this version. Passwords and other users stay.",
    ),
]


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the inbox and of its Redis user.")]

inbox = typer.Typer(
    name="inbox",
    help="Add, remove or list inboxes of untrusted producers.",
    epilog="Example: fetchfleet inbox add crawler --user >> users.acl",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(epilog="Example: fetchfleet acl --passwords passwords.txt > users.acl")(acl)
    app.add_typer(inbox)


@inbox.command("add", epilog="Example: fetchfleet inbox add crawler --user >> users.acl")
def inbox_add(
    name: Name,
    redis: RedisUrl = None,
    user: User = False,  # noqa: FBT002 a flag
    passwords: Passwords = None,
) -> None:
    """Register an inbox. The workers begin to read it within a second."""
    role = _pusher(name)

    async def add(_: Fleet, client: Redis) -> bool:
        if await client.scard(keys.INBOXES) >= MAX_INBOXES:  # type: ignore[misc]
            return False
        await client.sadd(keys.INBOXES, name)  # type: ignore[misc]
        return True

    if not query(redis, add):
        raise CommandError(f"{MAX_INBOXES} inboxes are registered, which is the limit; remove one first")
    message = f"{name}: push messages to {keys.inbox(name)}; its batch IDs begin with {inbox_prefix(name)}"
    if not user:
        echo(message)
        return
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    credentials = users.new_credentials(name)
    _write_passwords(passwords, [credentials])
    echo(role.line(credentials.digest))


@inbox.command("remove", epilog="Example: fetchfleet inbox remove crawler")
def inbox_remove(name: Name, redis: RedisUrl = None) -> None:
    """Unregister an inbox. Its messages stay in Redis."""
    _pusher(name)

    async def remove(_: Fleet, client: Redis) -> tuple[int, int]:
        removed = await client.srem(keys.INBOXES, name)  # type: ignore[misc]
        return int(removed), await _messages(client, name)

    removed, left = query(redis, remove)
    if not removed:
        raise CommandError(f"no inbox {name} is registered; list them with: fetchfleet inbox list")
    if left:
        console.print(f"{count(left, 'message')} left in {keys.inbox(name)}", highlight=False)


@inbox.command("list", epilog="Example: fetchfleet inbox list --json")
def inbox_list(redis: RedisUrl = None, as_json: Json = False) -> None:  # noqa: FBT002 a flag
    """List the registered inboxes with the number of their messages."""

    async def read(_: Fleet, client: Redis) -> dict[str, int]:
        names = sorted(map(text_of, await client.smembers(keys.INBOXES)))  # type: ignore[misc]
        return {name: await _messages(client, name) for name in names if is_inbox_name(name)}

    for name, messages in query(redis, read).items():
        if as_json:
            print_json({"name": name, "prefix": inbox_prefix(name), "messages": messages})
        else:
            echo(f"{name}  {inbox_prefix(name)}  {count(messages, 'message')}")


async def _messages(client: Redis, name: str) -> int:
    """Return the number of messages that no worker has enqueued or refused."""
    lists = (keys.inbox(name), keys.taken(name), keys.newer(name))
    return sum([int(await client.llen(key)) for key in lists])  # type: ignore[misc]


def acl(
    pusher: Pushers = None,
    passwords: Passwords = None,
    template: Template = False,  # noqa: FBT002 a flag
    keep: Keep = None,
) -> None:
    """Print an ACL file for Redis, with a user and a new password for each role.

    The file holds digests only. The passwords are shown once, on standard error.
    """
    if keep is not None:
        if pusher or passwords or template:
            raise CommandError("--keep cannot be combined with other options; leave them out", BAD_USE)
        echo_lines(users.renewed(_read_acl_file(keep)).rstrip("\n"))
        return
    roles = users.roles([_pusher(name) for name in dict.fromkeys(pusher or [])])
    if template:
        echo_lines(users.template(roles).rstrip("\n"))
        return
    credentials = {role: users.new_credentials(role.name) for role in roles}
    _write_passwords(passwords, [*credentials.values()])
    echo_lines(users.with_passwords(credentials).rstrip("\n"))


def _read_acl_file(file: Path) -> str:
    """Return the text of an ACL file. Raises CommandError if it cannot be read or has no user."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--keep {file}: {getattr(error, 'strerror', None) or error}", BAD_USE) from None
    if not any(line.startswith("user ") for line in text.splitlines()):
        raise CommandError(f"--keep {file}: no line begins with `user`; give an ACL file of Redis", BAD_USE)
    return text


def _pusher(name: str) -> Role:
    """Return the Redis user of an inbox. Raises CommandError if the name is not allowed."""
    try:
        return users.pusher(name)
    except ValueError as error:
        raise CommandError(str(error), BAD_USE) from None


def _write_passwords(file: Path | None, credentials: list[Credentials]) -> None:
    """Write users and passwords to a new file with mode 600, or to standard error without a file."""
    text = "".join(f"{user} {password}\n" for user, password in credentials)
    if file is None:
        typer.echo(text, err=True, nl=False)
        return
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CommandError(f"--passwords {file}: {error.strerror}", BAD_USE) from None
    with os.fdopen(handle, "w") as opened:
        opened.write(text)
