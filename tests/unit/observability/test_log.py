"""The time at which log lines reach their stream: together, in order, and before the process ends."""

import asyncio
import errno
import io
import json
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.jobs.contract.result import ABSENT, Outcome, Result, Timings
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.lanes.lane import Lane
from fetchfleet.worker.lanes.log_events import TakenLine, finished, write_finished
from fetchfleet.worker.observability import log
from fetchfleet.worker.observability.log import Event, LineWriter
from fetchfleet.worker.observability.totals import FetchTotals
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.util.clock import RedisClock
from tests.support.log_lines import capture_logs

FETCH_ID = "0123456789abcdef-00000001"
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


class Stream(io.StringIO):
    """A stream that keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        """Keep the text."""
        self.writes.append(text)
        return super().write(text)


async def test_the_lines_of_one_iteration_of_the_loop_are_one_write() -> None:
    """The next iteration writes them."""
    stream = Stream()
    writer = LineWriter(stream)
    writer.info("a")
    writer.info("b")
    assert stream.writes == []

    await asyncio.sleep(0)
    writer.debug("c")
    await asyncio.sleep(0)
    assert stream.writes == ["a\nb\n", "c\n"]


async def test_a_warning_is_written_at_once_after_earlier_lines() -> None:
    """The order of the lines is that of the events."""
    stream = Stream()
    writer = LineWriter(stream)
    writer.info("a")
    writer.warning("b")
    assert stream.writes == ["a\nb\n"]

    writer.info("c")
    await asyncio.sleep(0)
    assert stream.getvalue() == "a\nb\nc\n"


async def test_another_thread_writes_at_once() -> None:
    """It runs no event loop."""
    stream = Stream()
    writer = LineWriter(stream)
    await asyncio.to_thread(writer.info, "a")

    assert stream.writes == ["a\n"]


def test_a_new_loop_writes_the_lines_of_an_ended_one() -> None:
    """A stopped loop runs no more callbacks."""
    stream = Stream()
    writer = LineWriter(stream)

    async def say(line: str) -> None:
        writer.info(line)

    for line in ("a", "b"):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(say(line))
        loop.close()
    with asyncio.Runner() as runner:
        runner.run(say("c"))
    assert stream.getvalue() == "a\nb\nc\n"


def test_a_stream_that_refuses_writes_does_not_end_the_worker() -> None:
    """The lines are lost, and are counted."""

    class Full(Stream):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    before = log.COUNTS.dropped
    writer = LineWriter(Full())
    writer.info("a\nb")
    writer.warning("c")

    assert log.COUNTS.dropped - before == 3


@pytest.mark.parametrize("pretty", [False, True])
def test_lines_are_counted_by_event(stream: io.StringIO, *, pretty: bool) -> None:
    """Both formats count each line that is written, also lines that are written together."""
    log.configure(stream, pretty=pretty)
    before = log.COUNTS.events.copy()
    lines = [TakenLine(worker="one", lane="a", token=token, orphans=0) for token in range(3)]
    log.write_info(Event.LANE_TAKEN, lines)
    log.get_logger(worker="one").warning(Event.LANE_LOST, lane="a")
    log.get_logger().debug(Event.FETCH_EXCHANGE)

    assert log.COUNTS.events - before == {"lane.taken": 3, "lane.lost": 1}


async def test_a_closed_stream_without_pending_lines_is_not_written() -> None:
    """No line waits for it."""
    stream = Stream()
    writer = LineWriter(stream)
    writer.info("a")
    writer.warning("b")
    stream.close()
    await asyncio.sleep(0)
    writer.flush()

    assert stream.writes == ["a\nb\n"]


def test_a_time_is_in_utc_with_its_microseconds() -> None:
    """The format is that of `datetime`."""
    before, logged, after = datetime.now(UTC), log.timestamp(), datetime.now(UTC)

    assert before <= datetime.fromisoformat(logged) <= after
    assert len(logged) == len("2030-01-02T03:04:05.000006Z")


def test_lines_are_written_when_the_process_ends() -> None:
    """An exception may have ended the iteration."""
    program = """
import asyncio
from fetchfleet.worker.observability import log
log.configure()
async def main():
    log.get_logger().info("last")
    loop.stop()
    await asyncio.Event().wait()
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert '"event":"last"' in ended.stderr


@pytest.mark.parametrize("trace", [None, TRACE])
def test_the_line_of_a_fetch_is_the_same_on_both_paths(stream: io.StringIO, trace: str | None) -> None:
    """JSON is encoded directly. Other structlog processors receive the fields."""
    entry = Entry(id=FETCH_ID, deadline_ms=1, fetch=Fetch(url="http://a/?token=x", traceparent=trace))
    result = Result(
        id=FETCH_ID,
        url="http://a/?token=x",
        outcome=Outcome.STORED,
        worker="one",
        bytes=3,
        timings=Timings(total_ms=1.5),
        note=ABSENT,
    )
    noted = msgspec.structs.replace(result, note="a note \x7f")
    lanes = [Lane(name, 1, LanePolicy(), GateState(), RedisClock()) for name in ("a", "b")]
    lines = [finished(lanes[0], entry, noted), finished(lanes[1], entry, result)]
    write_finished(lines, FetchTotals())
    written = stream.getvalue()
    with capture_logs() as captured:
        write_finished(lines, FetchTotals())

    line, second = (json.loads(text) for text in written.splitlines())
    other, second_other = captured
    assert (second["lane"], second_other["lane"]) == ("b", "b")
    assert "\x7f" not in written
    level, at = other.pop("log_level"), line["timestamp"]
    assert [[*line][0], *[*line][-3:]] == ["worker", "event", "level", "timestamp"]  # noqa: RUF015 with the end
    assert line == {**other, "level": level, "timestamp": at}
    assert (line["url"], line["note"]) == ("http://a/?token=***", "a note \x7f")
    assert line.get("trace_id") == (trace and "a" * 32)
    log.configure(stream, level="warning")
    write_finished(lines, FetchTotals())
    assert stream.getvalue() == written
