"""The registration of a worker: its name, instance, version and settings, which never change.

Two workers may have one name, on two machines with the same host name for example. An instance identifies one
process, in Redis and in the names of shared files.
"""

import hashlib
import re
import secrets
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

from fetchfleet import __version__
from fetchfleet.worker.fetch.rules.abilities import Abilities, Ability, SettingKind, setting_text
from fetchfleet.worker.policy.published import digest_of
from fetchfleet.worker.settings import WARC, Settings

_INSTANCE = re.compile(r"(?s)(.+)-[0-9a-f]{8}")
_SUFFIX_BYTES = 4
_DIGEST_BYTES = 8
_UNPUBLISHED = frozenset({Ability.FILES.value, Ability.IN_FOLDER.value})
"""The abilities of the versions that publish none."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The registration of a worker, published with each heartbeat. Older versions publish none."""

    name: str
    """FETCHFLEET_WORKER_ID, or host name and process ID."""
    instance: str
    """The name with a random suffix, which identifies the process."""
    version: str = ""
    """The version of fetchfleet."""
    python: str = ""
    """The version of Python."""
    engine: str = ""
    sink: str = ""
    policy: str = ""
    """The digest of its policy file, or NO_FILE (worker/policy/published.py)."""
    abilities: tuple[str, ...] | None = None
    """Its abilities (worker/fetch/rules/abilities.py); None if its version does not publish them."""
    in_folder: str = ""
    """A digest of the machine and the path of its in folder; empty without one."""
    egress: str = ""
    """A digest of allow_net and deny_net."""
    started_ms: Annotated[int, msgspec.Meta(ge=0, lt=10**15)] = 0
    """The time of its start, Unix ms by the clock of Redis."""

    def log_fields(self) -> dict[str, str]:
        """Return the fields for the log event `worker.started`."""
        names = ("instance", "version", "python", "engine", "sink", "policy")
        return {name: getattr(self, name) for name in names}


def registration_of(settings: Settings, started_ms: int) -> Registration:
    """Return the registration of a new instance."""
    return Registration(
        name=settings.worker_id,
        instance=f"{settings.worker_id}-{secrets.token_hex(_SUFFIX_BYTES)}",
        version=__version__,
        python=".".join(map(str, sys.version_info[:3])),
        engine=settings.engine,
        sink=settings.sink_kind,
        policy=digest_of(settings.policy),
        abilities=tuple(sorted(_abilities(settings))),
        in_folder=_digest(socket.gethostname(), settings.in_folder.resolve()) if settings.in_folder else "",
        egress=_digest(sorted(settings.allow_net.split(",")), sorted(settings.deny_net.split(","))),
        started_ms=started_ms,
    )


def _abilities(settings: Settings) -> Iterator[str]:
    if settings.sink != WARC:
        yield Ability.FILES.value
    if settings.in_folder is not None:
        yield Ability.IN_FOLDER.value
    if settings.notify_secret:
        yield Ability.SIGN.value


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def abilities_of(registration: Registration | None) -> Abilities:
    """Return the abilities that a worker publishes.

    A worker that publishes none is assumed to have all abilities of its version that its sink allows.
    """
    if registration is None:
        return Abilities(_UNPUBLISHED)
    if registration.abilities is None:
        without = {Ability.FILES} if registration.sink == WARC else set[Ability]()
        return Abilities(_UNPUBLISHED - without)
    settings = {
        setting_text(SettingKind.EGRESS, f"{registration.egress}-{registration.policy}"),
        setting_text(SettingKind.POLICY, registration.policy),
    }
    if registration.in_folder:
        settings.add(setting_text(SettingKind.IN_FOLDER, registration.in_folder))
    return Abilities(frozenset(registration.abilities), frozenset(settings))


def name_of(instance: str) -> str:
    """Return the worker name of an instance. An ID without a suffix, of an older version, is a name."""
    match = _INSTANCE.fullmatch(instance)
    return match[1] if match else instance


def is_or_wraps(instance: str, name: str) -> bool:
    """Return whether the worker has this name, or a default name (host-pid) with this host."""
    worker = name_of(instance)
    host, _, process = worker.rpartition("-")
    return worker == name or (host == name and process.isdecimal())


def doubles_of(own: Registration, heartbeats: Iterable[tuple[str, float]]) -> list[str]:
    """Return the other instances with the same name that have sent a heartbeat since this one started.

    heartbeats: each instance, with the time of its last heartbeat (Unix ms). A predecessor sent its last one
    earlier.
    """
    return sorted(
        instance
        for instance, at_ms in heartbeats
        if instance != own.instance and name_of(instance) == own.name and at_ms > own.started_ms
    )
