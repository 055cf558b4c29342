"""The command about the Redis users of a fleet: acl."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fetchfleet.worker.cli.common import echo_lines
from fetchfleet.worker.errors import BAD_USE, CommandError
from fetchfleet.worker.redis_support import acl as users
from fetchfleet.worker.redis_support.acl import Credentials

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
Template = Annotated[bool, typer.Option("--template", help="Without passwords, as ops/users.acl.")]


def register(app: typer.Typer) -> None:
    """Make the command part of the app."""
    app.command()(acl)


def acl(
    pusher: Pushers = None,
    passwords: Passwords = None,
    template: Template = False,  # noqa: FBT002 a flag
) -> None:
    """Print an ACL file for Redis: a user for each part of a fleet, with new passwords.

    The file holds digests only. The passwords are shown once, on standard error.
    """
    try:
        roles = users.roles(pusher or [])
    except ValueError as error:
        raise CommandError(str(error), BAD_USE) from None
    if template:
        echo_lines(users.template(roles).rstrip("\n"))
        return
    credentials = {role: users.new_credentials(role.name) for role in roles}
    _hand_over(passwords, [*credentials.values()])
    echo_lines(users.with_passwords(credentials).rstrip("\n"))


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
