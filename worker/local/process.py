"""The processes of fetchfleet: their streams, settings and signals, and the worker processes of a run."""

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
from functools import cache
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
"""The standard descriptors (0 to 2) that were closed when this process started."""


def open_standard_streams() -> None:
    """Open closed standard descriptors (0 to 2) on /dev/null. Call it before any file is opened.

    Otherwise a socket or file would get the number of a standard stream. libuv aborts then, or printed text
    goes to that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(null, True)  # noqa: FBT003 the argument is positional-only
            closed_at_start.add(number)
        if getattr(sys, name) is None:  # it was closed when Python started
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def discard_unwritable() -> None:
    """Flush standard output and standard error, and drop text that cannot be written.

    Python would try again at exit, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def settings_from(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of flags (None if not given) and environment. Raises CommandError."""
    try:
        return load_settings(flags, os.environ)
    except SettingsError as error:
        raise CommandError(str(error), BAD_USE) from None


def worker_settings_from(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of a process that fetches. Raises CommandError, also for its TLS files."""
    settings = settings_from(flags)
    if settings.policy is NO_POLICY:
        return settings
    try:
        check(settings.policy)
    except PolicyError as error:
        raise CommandError(f"--policy: {error}", BAD_USE) from None
    return settings


def run_until_signal(work: Coroutine[Any, Any, T], if_interrupted: str = "interrupted") -> T:
    """Run the main coroutine of a process, which SIGINT and SIGTERM cancel.

    Raises CommandError for an expected error, or with the message `if_interrupted` after a signal.
    """
    gc_freeze.freeze()

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
            message = f"{redact.text(first)}\nrepeat the command to continue"
            raise CommandError(message, UNREACHABLE) from error
        if isinstance(first, RedisSetupError):
            raise CommandError(redact.text(first), BAD_USE) from error
        if isinstance(first, JobsError | RedisError | OSError):
            raise CommandError(redact.text(first)) from error
        raise


STOP_TIMEOUT_S = 30.0
"""The time after which a worker that should stop is killed."""
QUICK_END_S = 5.0
"""The time from the start of a worker within which its end is a quick one."""
MAX_QUICK_ENDS = 3
"""The quick ends in a row after which a worker is not started again."""

WORKER_ID = "FETCHFLEET_WORKER_ID"
"""The environment variable with the name of a worker."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal when its parent ends, even after SIGKILL. For preexec_fn; Linux only."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, by)


def _killed_with_parent() -> None:
    """Kill this process when its parent ends. While stopped, it would not handle SIGTERM."""
    die_with_parent(signal.SIGKILL)


def set_process_name(name: str) -> None:
    """Set the name that ps and top show. A forked process has the command line of its parent."""
    if sys.platform == "linux":
        _prctl(_PR_SET_NAME, name.encode())


def _prctl(option: int, value: int | bytes) -> None:
    _libc().prctl(option, value)


@cache
def _libc() -> Any:
    """Return the C library. Call it before a fork, so that the child need not import ctypes."""
    import ctypes  # noqa: PLC0415 it opens a file, so import it after open_standard_streams

    return ctypes.CDLL(None)


class ForkedProcess:
    """A child process that was forked without exec, with the methods of Popen that are needed."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while the process runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait for the end of the process, and return its exit code."""
        return self._reap(0)

    def send_signal(self, number: signal.Signals) -> None:
        """Send the process a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send the process SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            with suppress(ChildProcessError):  # another thread has reaped it and sets the exit code
                pid, status = os.waitpid(self.pid, options)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


Child = ForkedProcess | subprocess.Popen[bytes]


def fork_worker(name: str, main: Callable[[], int]) -> ForkedProcess:
    """Fork a worker process that runs `main`. This process must have one thread and no event loop.

    Like a child of Popen, the worker has its own session, and no descriptor of this process except for its
    standard input, a pipe.
    """
    _libc()
    gc.freeze()  # a garbage collection would write to the pages that both processes share
    stdin, pipe = os.pipe()
    pid = os.fork()
    if pid:
        os.close(stdin)
        return ForkedProcess(pid, os.fdopen(pipe, "wb", buffering=0))
    code = FAILED
    try:
        os.setsid()
        os.dup2(stdin, 0)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # also closes the pipes of earlier workers
        _killed_with_parent()
        os.environ[WORKER_ID] = name
        code = main()
    except BaseException:  # noqa: BLE001 no exception may reach the frames of the command
        traceback.print_exc()
    finally:
        discard_unwritable()
        os._exit(code)


def wait_or_kill(child: Child, timeout_s: float) -> None:
    """Wait for the end of a child, and kill it after timeout_s."""
    # Popen.wait with a timeout polls at growing intervals; without one it blocks in waitpid.
    waiter = Thread(target=child.wait, daemon=True)
    waiter.start()
    waiter.join(timeout_s)
    if waiter.is_alive():
        child.kill()
        waiter.join()


class WorkersError(CommandError):
    """The workers cannot be kept running. The message names their log."""


class WorkerProcess:
    """A worker process, which is started before it is configured, and restarted if it ends.

    main: if given, the first process is forked and runs it. Later ones are always executed, because this
    process then has threads and an event loop, which a fork would break.
    """

    def __init__(
        self, name: str, main: Callable[[], int] | None = None, *, quick_end_s: float = QUICK_END_S
    ) -> None:
        self.name = name
        self._quick_end_s = quick_end_s
        self._log: Path | None = None
        self._config = b""
        self._quick_ends = 0
        self._started_s = time.monotonic()
        self.process: Child = self._execute() if main is None else fork_worker(name, main)

    def configure(self, settings: Mapping[str, Any], log: Path) -> None:
        """Send the process its settings, by the names of the flags, and the log file to append to."""
        self._log = log
        self._config = json.dumps({"settings": dict(settings), "log": str(log)}).encode()
        self._send_config()

    def end(self) -> tuple[int, bool] | None:
        """Return the exit code, and whether it is a quick end; None if it runs. May raise WorkersError."""
        if (code := self.process.poll()) is None:
            return None
        quick = time.monotonic() - self._started_s < self._quick_end_s
        self._quick_ends = self._quick_ends + 1 if quick else 0
        if self._quick_ends >= MAX_QUICK_ENDS:
            raise WorkersError(f"a worker exits as soon as it starts; see {self._log}")
        return code, quick

    def restart(self) -> None:
        """Start the process again after its end."""
        self._started_s = time.monotonic()
        self.process = self._execute()
        self._send_config()

    def stop(self) -> None:
        """Send SIGTERM, after which the worker returns its fetches and exits."""
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal, unless it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self) -> None:
        """Wait for the end of the process, and kill it after STOP_TIMEOUT_S."""
        wait_or_kill(self.process, STOP_TIMEOUT_S)
        if self.process.stdin:
            self.process.stdin.close()

    def _execute(self) -> "subprocess.Popen[bytes]":
        """Start the process with a new interpreter.

        A restarted process appends to the log from the start, because it may fail before it is configured.
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
                preexec_fn=_killed_with_parent,  # noqa: PLW1509 no other thread holds locks
            )

    def _send_config(self) -> None:
        with suppress(BrokenPipeError):  # the process has ended; keep_alive restarts it
            assert self.process.stdin
            with self.process.stdin as pipe:
                pipe.write(self._config)


@contextmanager
def prestarted(
    count: int,
    main: Callable[[], int] | None = None,
    *,
    first: int = 1,
    quick_end_s: float = QUICK_END_S,
) -> Iterator[list[WorkerProcess]]:
    """Start worker processes that are not configured yet, and stop them at the end of the block.

    count: their number. main: see WorkerProcess. first: the number in the name of the first one.
    """
    workers: list[WorkerProcess] = []
    try:
        for number in range(first, first + count):
            worker = WorkerProcess(f"worker-{number}", main, quick_end_s=quick_end_s)
            workers.append(worker)  # one by one, so that a failure stops the earlier ones
        yield workers
    finally:
        _stop(workers)


@contextmanager
def configured(workers: list[WorkerProcess], settings: Mapping[str, Any], logs: Path) -> Iterator[None]:
    """Configure worker processes, and stop them at the end of the block. logs: the folder of their logs."""
    try:
        for worker in workers:
            worker.configure(settings, logs / f"{worker.name}.log")
        yield
    finally:
        _stop(workers)


@contextmanager
def worker_processes(
    count: int, settings: Mapping[str, Any], logs: Path, *, first: int = 1
) -> Iterator[list[WorkerProcess]]:
    """Run workers within the block. See `prestarted` and `configured`."""
    with prestarted(count, first=first) as workers, configured(workers, settings, logs):
        yield workers


@contextmanager
def suspended_together(workers: list[WorkerProcess]) -> Iterator[None]:
    """Within the block, stop the workers and then this process on SIGTSTP (Ctrl-Z).

    After SIGCONT this process resumes the workers, which have their own sessions. Needs a running event loop.
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


def _stop(workers: list[WorkerProcess]) -> None:
    """Stop all workers, and wait for their ends."""
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.wait()
