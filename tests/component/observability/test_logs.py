"""The log: its lines, and the secrets that it never contains."""

import io
import json
import logging
from collections import Counter

import pytest

from fetchfleet import Outcome
from fetchfleet.worker.http.httpx_engine import HttpxEngine
from fetchfleet.worker.observability import log
from tests.component.conftest import Lines, Start
from tests.support.waiting import wait_until
from tools.one_worker import OneWorker
from tools.origin import behaviours
from tools.origin import server as o
from tools.origin.server import Origin

FIELDS = {
    *("event", "worker", "id", "batch", "lane", "method", "url"),
    *("status", "outcome", "reason", "note", "bytes", "stale"),
    *("attempts", "throttles", "interruptions"),
    *("queue_ms", "connect_ms", "ttfb_ms", "total_ms"),
}
SECRET = "hunter2"


def of_event(lines: Lines, event: str) -> Lines:
    """Return the log lines of one event."""
    return [line for line in lines if line["event"] == event]


async def test_every_fetch_has_one_canonical_line(origin: Origin, worker: OneWorker, lines: Lines) -> None:
    """It has the outcome and the counts, for any end and any number of attempts."""
    origin.behaviour = behaviours.by_path(
        {
            "/404": behaviours.NOT_FOUND,
            "/500": behaviours.fail_times(1, 500),
            "/302": behaviours.redirect("/ok"),
            "/": behaviours.OK,
        }
    )

    results = await worker.results(origin.url(path) for path in ("/ok", "/404", "/500", "/302"))
    finished = {line["id"]: line for line in of_event(lines, "fetch.finished")}

    assert len(of_event(lines, "fetch.finished")) == len(results)
    for result in results:
        line = finished[result.id]
        assert line.keys() >= FIELDS
        assert (line["outcome"], line["reason"]) == (result.outcome, result.reason)
        assert (line["status"], line["bytes"]) == (result.status, result.bytes)
        assert line["attempts"] == result.attempts
    assert len(of_event(lines, "fetch.retry")) == 1


async def test_the_canonical_line_has_the_error_of_the_attempt(worker: OneWorker, lines: Lines) -> None:
    """Its `note` is the text of the error."""
    await worker.run(["http://[2001:db8::1]/"])

    [line] = of_event(lines, "fetch.finished")
    assert line["reason"] == "egress_refused"
    assert "documentation" in line["note"]


async def test_a_lane_logs_each_change_of_its_state(origin: Origin, start: Start, lines: Lines) -> None:
    """Acquisition, cool-down, breaker and release each have a line with the lane's name."""
    worker = await start(policy={"breaker_failures": 2, "concurrency": 1})
    origin.behaviour = behaviours.sequence(
        behaviours.retry_after(1), behaviours.status(500), behaviours.status(500), behaviours.OK
    )

    await worker.results([origin.url("/one"), origin.url("/other")])
    await wait_until(lambda: not worker.runtime.lanes, "the lane to be released")

    names = [line["event"] for line in lines if line["event"].startswith("lane.")]
    counts = Counter(names)
    assert all("lane" in line for line in lines if line["event"].startswith("lane."))
    assert counts["lane.cooling"] == counts["lane.breaker_open"] == counts["lane.breaker_closed"] == 1
    assert counts["lane.taken"] == counts["lane.released"] >= 2
    assert names.index("lane.cooling") < names.index("lane.breaker_open") < names.index("lane.breaker_closed")
    assert names[-1] == "lane.released"


async def test_a_released_lane_logs_the_reason(origin: Origin, worker: OneWorker, lines: Lines) -> None:
    """The line also has the time at which the lane is due again."""
    origin.behaviour = behaviours.retry_after(3600)
    await worker.submit([origin.url()])
    await wait_until(lambda: of_event(lines, "lane.released"), "the lane to be released")

    [cooling], [released] = of_event(lines, "lane.cooling"), of_event(lines, "lane.released")
    assert cooling["wait_s"] >= 3599
    assert (released["more"], released["why"]) == (True, "cooling")
    assert released["due_in_ms"] >= 3_590_000


async def test_a_worker_logs_its_start_and_stop(worker: OneWorker, lines: Lines) -> None:
    """A heartbeat line comes right before the last line."""
    await worker.stop()

    assert lines[0]["event"] == "worker.started"
    assert worker.runtime.registration.log_fields().items() <= lines[0].items()
    assert [line["event"] for line in lines[-3:]] == ["worker.stopping", "worker.heartbeat", "worker.stopped"]


async def test_the_line_of_a_start_names_the_limits(start: Start, lines: Lines) -> None:
    """They are the values of the settings in force."""
    await start(max_in_flight=7, lease_s=3.0)

    [started] = of_event(lines, "worker.started")
    assert started["limits"] == {
        "max_in_flight": 7,
        "lease_s": 3.0,
        "grace_s": 10.0,
        "max_backlog": 0,
        "results_length": 100_000,
        "min_free_bytes": 64 << 20,
    }


async def test_a_worker_may_log_failed_fetches_only(origin: Origin, start: Start, lines: Lines) -> None:
    """Its counters include the others."""
    worker = await start(log_finished="failed")
    origin.behaviour = behaviours.by_path({"/404": behaviours.NOT_FOUND, "/": behaviours.OK})
    results = await worker.results(origin.url(path) for path in ("/ok", "/404", "/other"))
    await worker.stop()

    [finished], [heartbeat] = (of_event(lines, event) for event in ("fetch.finished", "worker.heartbeat"))
    assert finished["id"] == results[1].id
    assert heartbeat["finished"] == {"stored": {"none": 2}, "failed": {"http_status": 1}}


@pytest.mark.parametrize(
    "behaviour",
    [
        behaviours.OK,
        behaviours.status(500),
        behaviours.sequence(behaviours.retry_after(1), behaviours.OK),
        behaviours.reset,
        behaviours.redirect(f"/elsewhere?token={SECRET}"),
        behaviours.redirect(f"http://user:{SECRET}@127.0.0.12/"),
        behaviours.redirect(f"http://127.0.0.12:1/?token={SECRET}"),
        behaviours.redirect(f"http://10.0.0.1/?token={SECRET}"),
        behaviours.redirect(f"ftp://user:{SECRET}@x/?token={SECRET}"),
        behaviours.garbage(b"HTTP/1.1 200 OK\r\nX: " + SECRET.encode() + b"\r\nbad line\r\n\r\n"),
    ],
    ids=["ok", "500", "429", "reset", "hop", "userinfo", "dead-hop", "refused-hop", "ftp", "garbage"],
)
async def test_no_log_line_contains_a_secret(
    origin: Origin, start: Start, stream: io.StringIO, behaviour: o.Behaviour
) -> None:
    """Queries' values, userinfo, headers, bodies and meta are never written, also those of a redirect."""
    worker = await start(policy={"attempts": 2})
    origin.behaviour = behaviour

    await worker.one(
        origin.url(f"/a?token={SECRET}&{SECRET}"),
        method="PUT",
        headers={"Authorization": SECRET},
        body=SECRET,
        deadline_s=10,
        meta=SECRET,
    )
    await worker.stop()

    assert "fetch.finished" in stream.getvalue()
    assert SECRET not in stream.getvalue()


async def test_log_lines_are_json_without_a_terminal(
    origin: Origin, start: Start, stream: io.StringIO
) -> None:
    """Each line is one JSON object with its time and level."""
    worker = await start()
    result = await worker.one(origin.url())
    await worker.stop()

    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    [finished] = [line for line in written if line["event"] == "fetch.finished"]
    assert result.outcome is Outcome.STORED
    assert finished.keys() >= FIELDS | {"timestamp", "level"}
    assert (finished["level"], finished["id"]) == ("info", result.id)


async def test_warnings_of_libraries_are_redacted_json_lines(stream: io.StringIO) -> None:
    """Info messages of libraries are dropped."""
    logging.getLogger("httpx").info("GET https://x/?token=%s", SECRET)
    logging.getLogger("arq.worker").warning("lost https://u:%s@x/?token=%s", SECRET, SECRET)

    [line] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["event"], line["library"]) == ("library", "arq.worker")
    assert SECRET not in stream.getvalue()


async def test_a_repeated_warning_of_a_library_is_logged_once(stream: io.StringIO) -> None:
    """Warnings with the same template count as one, although their arguments differ."""
    for place in range(50):
        logging.getLogger("arq.worker").warning("lost connection %d", place)
        logging.getLogger("arq.worker").warning("job took long")

    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert ["lost connection 0", "job took long"] == [line["message"] for line in written]


async def test_at_debug_level_each_exchange_has_a_line(origin: Origin, start: Start, lines: Lines) -> None:
    """It has fetch, trace, lane, status, duration and reuse of the connection."""
    worker = await start(log_level="debug")
    origin.behaviour = behaviours.by_path(
        {"/a": behaviours.redirect(f"/b?token={SECRET}"), "/b": behaviours.NOT_FOUND}
    )

    result = await worker.one(origin.url("/a"), traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    first, second = of_event(lines, "fetch.exchange")

    assert (first["id"], first["trace_id"], first["lane"]) == (result.id, "a" * 32, "127.0.0.11")
    assert (first["method"], first["version"], first["log_level"]) == ("GET", "HTTP/1.1", "debug")
    assert (first["url"], second["url"]) == (origin.url("/a"), origin.url("/b?token=***"))
    assert [line["status"] for line in (first, second)] == [302, 404]
    assert [line["reused"] for line in (first, second)] == [False, True]
    assert all(line["ms"] > 0 for line in (first, second))


async def test_at_info_level_no_event_hooks_are_installed(
    origin: Origin, worker: OneWorker, lines: Lines
) -> None:
    """Exchanges have no log line and no cost at that level."""
    await worker.one(origin.url())

    engine = worker.runtime.services.engine
    assert isinstance(engine, HttpxEngine)
    assert engine._client.event_hooks == {"request": [], "response": []}
    assert of_event(lines, "fetch.exchange") == []


@pytest.mark.parametrize(("level", "written"), [("info", ["two"]), ("debug", ["one", "two"])])
def test_lines_below_the_level_are_not_written(
    any_stream: io.StringIO, level: str, written: list[str]
) -> None:
    """Debug lines are written only at debug level."""
    log.configure(any_stream, level=level)
    log.get_logger().debug("one")
    log.get_logger().info("two")

    assert [json.loads(line)["event"] for line in any_stream.getvalue().splitlines()] == written
