"""The processes of fetchfleet: how each runs and ends, and the child processes of a run."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any, TypeVar

import uvloop
from redis.exceptions import RedisError

from fetchfleet.jobs.errors import FleetUnreachableError, JobsError, RedisSetupError
from fetchfleet.worker.errors import BAD_USE, FAILED, INTERRUPTED, UNREACHABLE, CommandError
from fetchfleet.worker.http.net.tls_contexts import check
from fetchfleet.worker.observability import redact
from fetchfleet.worker.policy.model import PolicyError
from fetchfleet.worker.settings import NO_POLICY, Settings, SettingsError, load_settings
from fetchfleet.worker.util import aio, gc_freeze

T = TypeVar("T")


STDOUT = 1

closed_at_start: set[int] = set()
"""Those of the descriptors 0 to 2 that were closed when this process started."""


def open_standard_streams() -> None:
    """Open those of the descriptors 0 to 2 that are closed on /dev/null. Nothing may be open before.

    Otherwise a socket or file gets such a number: libuv aborts at it, and printed text ends up in it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(null, True)  # noqa: FBT003 its only form
            closed_at_start.add(number)
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def discard_unwritable() -> None:
    """Flush standard output and standard error, and drop what cannot be written.

    Python would try again at its end and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def settings_from(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of the flags (None: not given) and the environment. Raises CommandError."""
    try:
        return load_settings(flags, os.environ)
    except SettingsError as error:
        raise CommandError(str(error), BAD_USE) from None


def worker_settings_from(flags: Mapping[str, Any]) -> Settings:
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
    gc.set_threshold(gc_freeze.YOUNG_OBJECTS)
    gc.enable()  # the command line has disabled it while it imported

    async def main() -> T:
        task = asyncio.create_task(work)
        await aio.wait_for_either(task, aio.stop_signal())
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
            lines = map(redact.text, str(first).splitlines())
            raise CommandError("\n".join(lines), first.exit_code) from error
        if isinstance(first, FleetUnreachableError):
            message = f"{redact.text(first)}\nthe same command goes on where this one stopped"
            raise CommandError(message, UNREACHABLE) from error
        if isinstance(first, RedisSetupError):
            raise CommandError(redact.text(first), BAD_USE) from error
        if isinstance(first, JobsError | RedisError | OSError):
            raise CommandError(redact.text(first)) from error
        raise


STOP_TIMEOUT_S = 30.0


MAX_QUICK_ENDS = 3


QUICK_END_S = 5.0


WORKER_ID = "FETCHFLEET_WORKER_ID"
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Terminate this process when its parent dies, however it dies. A preexec_fn; Linux only."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, by)


def _killed_with_parent() -> None:
    """End this process with its parent even while it is stopped, when it would not handle SIGTERM."""
    die_with_parent(signal.SIGKILL)


def set_process_name(name: str) -> None:
    """Name this process in the lists of ps and top, where a forked one has the command line of its parent."""
    if sys.platform == "linux":
        _prctl(_PR_SET_NAME, name.encode())


def _prctl(option: int, value: int | bytes) -> None:
    import ctypes  # noqa: PLC0415 libffi keeps a file open: not before open_standard_streams

    ctypes.CDLL(None).prctl(option, value)


class ForkedProcess:
    """A child process that was forked without an exec, used like one of Popen."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Return the exit code when it has ended."""
        return self._reap(0)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            with suppress(ChildProcessError):  # another thread has reaped it, and sets the exit code
                pid, status = os.waitpid(self.pid, options)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


Child = ForkedProcess | subprocess.Popen[bytes]


def forked(name: str, main: Callable[[], int]) -> ForkedProcess:
    """Start a worker process as a copy of this one, which has one thread, no event loop and no open file.

    Like a child of Popen it has a session of its own and no descriptor of this process but its end of a pipe.
    """
    gc.freeze()  # a collection would write to the pages that both share
    orders, pipe = os.pipe()
    pid = os.fork()
    if pid:
        os.close(orders)
        return ForkedProcess(pid, os.fdopen(pipe, "wb", buffering=0))
    code = FAILED
    try:
        os.setsid()
        os.dup2(orders, 0)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # also the pipes of the workers before
        _killed_with_parent()
        os.environ[WORKER_ID] = name
        code = main()
    except BaseException:  # noqa: BLE001 the frames below are the command's
        traceback.print_exc()
    finally:
        discard_unwritable()
        os._exit(code)


def await_end(child: Child, timeout_s: float) -> None:
    """Return when the child has ended; it is killed after timeout_s."""
    # Popen.wait with a timeout polls at growing intervals; without one it blocks in waitpid.
    waiting = Thread(target=child.wait, daemon=True)
    waiting.start()
    waiting.join(timeout_s)
    if waiting.is_alive():
        child.kill()
        waiting.join()


class WorkersError(CommandError):
    """The workers cannot be kept running; the message names their log."""


class WorkerProcess:
    """A process that is started first, given its orders later, and started again if it dies.

    main: if given, the first process is forked and runs it. Those in its place are executed: by then this
    process has threads and an event loop, which do not survive a fork.
    """

    def __init__(
        self, name: str, main: Callable[[], int] | None = None, *, quick_end_s: float = QUICK_END_S
    ) -> None:
        self.name = name
        self._quick_end_s = quick_end_s
        self._log: Path | None = None
        self._orders = b""
        self._quick_ends = 0
        self._started_s = time.monotonic()
        self.process: Child = self._executed() if main is None else forked(name, main)

    def begin(self, settings: Mapping[str, Any], log: Path) -> None:
        """Make it a worker with these settings, by the names of the flags; it appends to the log."""
        self._log = log
        self._orders = json.dumps({"settings": dict(settings), "log": str(log)}).encode()
        self._send_orders()

    def keep_alive(self) -> None:
        """Start it again if it died. Raises WorkersError if it died quickly several times."""
        if self.process.poll() is None:
            return
        quick = time.monotonic() - self._started_s < self._quick_end_s
        self._quick_ends = self._quick_ends + 1 if quick else 0
        if self._quick_ends >= MAX_QUICK_ENDS:
            raise WorkersError(f"a worker ends as soon as it starts; {self._log} says why")
        self._started_s = time.monotonic()
        self.process = self._executed()
        self._send_orders()

    def stop(self) -> None:
        """Ask it to return its fetches and end."""
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self) -> None:
        """Return when it has ended; it is killed after STOP_TIMEOUT_S."""
        await_end(self.process, STOP_TIMEOUT_S)
        if self.process.stdin:
            self.process.stdin.close()

    def _executed(self) -> "subprocess.Popen[bytes]":
        """Start it as a process of its own memory, which imports what it needs.

        A restarted process has its log from the start: an error may come before its orders do.
        """
        with self._log.open("ab") if self._log else nullcontext(subprocess.DEVNULL) as output:
            return subprocess.Popen(
                [sys.executable, "-m", "fetchfleet.worker.local.prestart"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, WORKER_ID: self.name},
                start_new_session=True,
                preexec_fn=_killed_with_parent,  # noqa: PLW1509 the caller has no threads that hold locks
            )

    def _send_orders(self) -> None:
        with suppress(BrokenPipeError):  # it has died: keep_alive starts it again
            assert self.process.stdin
            with self.process.stdin as pipe:
                pipe.write(self._orders)


@contextmanager
def prestarted(
    count: int,
    main: Callable[[], int] | None = None,
    *,
    first: int = 1,
    quick_end_s: float = QUICK_END_S,
) -> Iterator[list[WorkerProcess]]:
    """Start that many processes, numbered from `first`, without orders; end them with the block.

    main: as of WorkerProcess.
    """
    workers: list[WorkerProcess] = []
    try:
        for number in range(first, first + count):
            worker = WorkerProcess(f"worker-{number}", main, quick_end_s=quick_end_s)
            workers.append(worker)  # one by one: if one fails, the others end
        yield workers
    finally:
        _end(workers)


@contextmanager
def at_work(workers: list[WorkerProcess], settings: Mapping[str, Any], logs: Path) -> Iterator[None]:
    """Make them workers with these settings, each with a log in that folder; end them with the block."""
    try:
        for worker in workers:
            worker.begin(settings, logs / f"{worker.name}.log")
        yield
    finally:
        _end(workers)


@contextmanager
def worker_processes(
    count: int, settings: Mapping[str, Any], logs: Path, *, first: int = 1
) -> Iterator[list[WorkerProcess]]:
    """Run that many workers, numbered from `first`; end them with the block."""
    with prestarted(count, first=first) as workers, at_work(workers, settings, logs):
        yield workers


@contextmanager
def suspended_together(workers: list[WorkerProcess]) -> Iterator[None]:
    """Let SIGTSTP (Ctrl-Z) stop the workers, which have sessions of their own, and then this process.

    SIGCONT resumes this process, which resumes the workers. Needs a running event loop.
    """

    def stop_all() -> None:
        for worker in workers:
            worker.send(signal.SIGSTOP)  # the kernel ignores SIGTSTP in a session without a terminal
        os.kill(os.getpid(), signal.SIGSTOP)
        for worker in workers:
            worker.send(signal.SIGCONT)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTSTP, stop_all)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTSTP)


def _end(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.wait()
