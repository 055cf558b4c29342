"""A process of fetchfleet: its settings, its main coroutine, and the error that ends it."""

import asyncio
import gc
import os
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import uvloop
from redis.exceptions import RedisError

from fetchfleet.jobs.errors import JobsError
from fetchfleet.worker.errors import BAD_USE, INTERRUPTED, CommandError
from fetchfleet.worker.http.net.tls_contexts import check
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.settings import NO_POLICY, Settings, SettingsError, load_settings
from fetchfleet.worker.util import aio

T = TypeVar("T")


def settings_from(flags: Mapping[str, str | None]) -> Settings:
    """Return the settings of the flags (None: not given) and the environment. Raises CommandError."""
    try:
        return load_settings(flags, os.environ)
    except SettingsError as error:
        raise CommandError(str(error), BAD_USE) from None


def worker_settings_from(flags: Mapping[str, str | None]) -> Settings:
    """Return the settings of a process that fetches; the TLS files of its policy have been read once.

    Raises CommandError.
    """
    settings = settings_from(flags)
    if settings.policy is NO_POLICY:
        return settings
    try:
        check(settings.policy)
    except PolicyError as error:
        raise CommandError(f"--policy: {error}", BAD_USE) from None
    return settings


def run_until_signal(work: Coroutine[Any, Any, T], if_interrupted: str = "interrupted") -> T:
    """Run the main coroutine of a process; SIGINT and SIGTERM cancel it.

    Raises CommandError for an expected error, and with `if_interrupted` after a signal.
    """
    gc.enable()  # the command line has disabled it while it imported

    async def main() -> T:
        task = asyncio.create_task(work)
        await aio.until(task, aio.signals())
        if not task.done():
            await aio.end(task)  # a single cancellation may be lost (worker/util/aio.py)
            raise asyncio.CancelledError
        return await task

    try:
        return uvloop.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError(if_interrupted, INTERRUPTED) from None
    except Exception as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, CommandError):
            raise CommandError(redact.text(first), first.exit_code) from error
        if isinstance(first, JobsError | RedisError | OSError):
            raise CommandError(redact.text(first)) from error
        raise
