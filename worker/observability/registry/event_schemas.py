"""The schema of each log event: its level, its meaning and its fields."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

import msgspec

from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.registry.event_fields import COMMON, FIELDS, Field


class EventSchema(NamedTuple):
    """The level, the meaning and the fields of an event."""

    level: Literal["debug", "info", "warning", "error"]
    means: str
    always: str = ""
    """The names of the fields of every line of the event, apart from COMMON."""
    at_times: str = ""
    """The names of the fields that a line may lack."""
    own: Mapping[str, Field] = {}
    """The fields whose type or meaning differs from FIELDS in this event."""


_PEER = Field(str, "address of the caller")
_REQUEST_PATH = Field(str, "path of the request, without secrets")
_MAYBE_ERROR = {"error": Field(str | None, "error of the refused writes; null if none was refused")}

EVENTS = {
    Event.FETCH_FINISHED: EventSchema(
        "info",
        "a fetch has its result; exactly one line for each fetch",
        "id batch lane method url status outcome reason note bytes stale attempts throttles interruptions"
        " queue_ms connect_ms ttfb_ms total_ms protocol reused dns_ms tls_ms peer hops content_type path"
        " priority waited_ms",
        "lenient trace_id",
    ),
    Event.FETCH_RETRY: EventSchema(
        "info",
        "an attempt is over and the fetch waits for the next",
        "id batch lane url status reason note wait_s attempts throttles interruptions",
        "trace_id",
    ),
    Event.FETCH_EXCHANGE: EventSchema(
        "debug",
        "a request was answered, redirects and robots.txt included",
        "lane method url status version reused ms",
        "id trace_id",
        {
            "version": Field(str, "version of HTTP"),
            "status": Field(int, "status code of the response"),
            "reused": Field(bool, "true if the request used an open connection"),
        },
    ),
    Event.FETCH_LOST: EventSchema(
        "warning",
        "fetches whose entries were lost or damaged in Redis ended after their deadlines",
        "batch fetches",
    ),
    Event.FETCH_BUG: EventSchema(
        "error", "a bug; the fetch continues as after a failed attempt", "id lane error trace", "trace_id"
    ),
    Event.LANE_TAKEN: EventSchema("info", "the worker acquired a lane", "lane token orphans"),
    Event.LANE_RELEASED: EventSchema("info", "the lane was released", "lane more due_in_ms why handed_back"),
    Event.LANE_YIELDED: EventSchema(
        "info",
        "the lane is released because the worker holds more than its share",
        "lane in_flight held busy workers",
    ),
    Event.LANE_COOLING: EventSchema(
        "info", "the host asked the client to back off", "lane until_ms wait_s incidents"
    ),
    Event.LANE_BREAKER_OPEN: EventSchema("info", "the breaker opened", "lane failures until_ms"),
    Event.LANE_BREAKER_HALF_OPEN: EventSchema("info", "a probe may start", "lane failures until_ms"),
    Event.LANE_BREAKER_CLOSED: EventSchema("info", "the host recovered", "lane failures until_ms"),
    Event.LANE_RESET: EventSchema("info", "an operator reset the lane", "lane reset by"),
    Event.LANE_ROBOTS: EventSchema(
        "info", "robots.txt of an origin was requested", "lane origin status reason note"
    ),
    Event.LANE_CANCELLED: EventSchema(
        "info", "fetches of cancelled batches in the lane have their results", "lane batches fetches"
    ),
    Event.LANE_DEAD: EventSchema(
        "warning",
        "the host no longer responds; its waiting fetches failed",
        "lane fetches down_since_ms",
    ),
    Event.LANE_RESCUED: EventSchema(
        "warning",
        "the sweep rescheduled a lane whose owner died or whose notification was lost",
        "lane owner",
        "suppressed",
    ),
    Event.LANE_LAPSED: EventSchema(
        "warning",
        "a lease ended by the clock of the worker, because Redis did not answer; the work was stopped",
        "lane in_flight",
    ),
    Event.LANE_LOST: EventSchema("warning", "another worker holds the lane; the work was stopped", "lane"),
    Event.LANE_NEWER: EventSchema(
        "warning",
        "a fetch was written for newer workers and is left to them",
        "lane id error",
        "suppressed",
    ),
    Event.LANE_UNSERVED: EventSchema(
        "warning",
        "a fetch waits for a worker that can do it, and none is alive",
        "lane id needs",
        "suppressed trace_id",
    ),
    Event.LANE_INVALID: EventSchema(
        "error",
        "an element of the lane was not a fetch of this lane; it becomes a dead letter",
        "lane why error",
        "suppressed",
        {"why": Field(str, "reason of the quarantine")},
    ),
    Event.LANE_UNVERIFIED_TLS: EventSchema(
        "warning",
        "the policy disables certificate verification for this host; logged when the lane is acquired",
        "lane",
        "suppressed",
    ),
    Event.INTAKE_TAKEN: EventSchema(
        "info", "inbox messages were enqueued", "batch messages refused", "inbox"
    ),
    Event.INTAKE_REFUSED: EventSchema(
        "warning",
        "a message or an arq job was not a fetch; it becomes a dead letter",
        "door error",
        "inbox suppressed",
    ),
    Event.INTAKE_NEWER: EventSchema(
        "warning",
        "messages or arq jobs wait for a newer worker",
        "door error",
        "inbox suppressed",
    ),
    Event.INTAKE_FULL: EventSchema(
        "warning",
        "the inbox waits, because the backlog limit is reached or Redis is full",
        "error",
        "suppressed",
    ),
    Event.WEBHOOK_ENQUEUED: EventSchema(
        "info", "a batch has ended, and its webhook is enqueued as a batch of one fetch", "batch webhook url"
    ),
    Event.WEBHOOK_REFUSED: EventSchema(
        "warning", "the webhook of a batch that has ended could not be enqueued", "batch webhook url error"
    ),
    Event.RESULTS_LAGGING: EventSchema(
        "warning",
        "a consumer group has not read the oldest results, which are soon trimmed",
        "groups results most",
        "suppressed",
    ),
    Event.RESULTS_TRIMMED: EventSchema(
        "warning",
        "results that a consumer group has not acknowledged are trimmed now",
        "groups results most",
        "suppressed",
    ),
    Event.POLICY_CHANGED: EventSchema("info", "policy tables set at run time are in force", "tables"),
    Event.POLICY_REFUSED: EventSchema(
        "warning",
        "the tables in Redis do not fit the policy file of this worker; the old ones stay in force",
        "error",
    ),
    Event.WORKER_STARTED: EventSchema(
        "info",
        "the worker is ready",
        "instance version python engine sink policy out loop limits",
        "spool",
        own={"loop": Field(str, "implementation of the event loop")},
    ),
    Event.WORKER_NAME_TAKEN: EventSchema(
        "warning", "other live workers have the name of this worker", "instance others"
    ),
    Event.WORKERS_DIFFER: EventSchema(
        "warning", "live workers have different settings; once for each combination", "instance settings"
    ),
    Event.WORKER_HEARTBEAT: EventSchema(
        "info",
        "statistics of the worker, every ten seconds and at its end",
        "interval_s lanes in_flight settling pool_wait_p50_ms pool_wait_p99_ms opened reused closed open"
        " tcp_p50_ms tcp_p99_ms tls_p50_ms tls_p99_ms lag_p50_ms lag_max_ms quarantined rss_bytes open_files"
        " finished retries throttles interruptions received_bytes log_lines_dropped",
        own={
            "reused": Field(int, "connections to hosts reused in the interval"),
            "throttles": Field(int, "responses since the start that asked the client to back off"),
            "interruptions": Field(int, "attempts since the start that were cut off"),
        },
    ),
    Event.FLEET_STATUS: EventSchema(
        "info",
        "the fleet in numbers, every ten seconds from one of its workers",
        "workers draining lacking lanes lanes_read lanes_in_all runnable waiting in_flight oldest_s inbox"
        " arq dead unread finished",
        own={
            "workers": Field(int, "live workers that acquire lanes"),
            "lanes": Field(dict[str, int], "lanes by state"),
            "inbox": Field(int, "inbox messages that no worker has enqueued yet"),
            "finished": Field(
                dict[str, dict[str, int]],
                "results of the live workers since their start, by outcome and reason",
            ),
        },
    ),
    Event.WORKER_DRAINING: EventSchema(
        "info", "an operator drains the worker; it releases its lanes", "lanes"
    ),
    Event.WORKER_DRAINED: EventSchema("info", "the drained worker has released its last lane"),
    Event.WORKER_UNDRAINED: EventSchema("info", "the drain has ended; the worker acquires lanes again"),
    Event.WORKER_STOPPING: EventSchema("info", "SIGTERM was received", "lanes"),
    Event.WORKER_STOPPED: EventSchema("info", "everything is closed"),
    Event.WORKER_BUG: EventSchema(
        "error",
        "a bug in a loop of the worker; the loop is started again",
        "loop error trace",
        "suppressed",
    ),
    Event.REDIS_TROUBLE: EventSchema(
        "warning",
        "Redis did not answer, or refused a call; the worker keeps its lanes and tries again",
        "error",
        "suppressed",
    ),
    Event.REDIS_REFUSAL: EventSchema(
        "error", "Redis rejects the credentials or denies a command", "error", "suppressed"
    ),
    Event.REDIS_BACK: EventSchema("info", "the trouble with Redis is over", "lasted_s failed"),
    Event.REDIS_LOADING: EventSchema(
        "warning", "Redis is loading its data; the worker starts when that is done"
    ),
    Event.REDIS_FOREIGN: EventSchema(
        "error",
        "another program wrote to a key of the fleet; the value becomes a dead letter",
        "key found",
        "wanted count suppressed",
    ),
    Event.DISK_FULL: EventSchema(
        "error",
        "no space for bodies; the worker starts no fetch",
        "wanting free_bytes free_files error",
        "suppressed",
        _MAYBE_ERROR,
    ),
    Event.DISK_REFUSED: EventSchema(
        "error",
        "bodies cannot be stored although the disk works; the worker starts no fetch",
        "wanting free_bytes free_files error",
        "suppressed",
        _MAYBE_ERROR,
    ),
    Event.DISK_REOPENED: EventSchema(
        "warning",
        "the out folder was moved, removed or replaced; bodies go to the folder that has its path now",
        "out",
    ),
    Event.DISK_OK: EventSchema("info", "bodies can be stored again", "free_bytes free_files"),
    Event.DISK_IN_THE_WAY: EventSchema(
        "error",
        "a link, folder or file in the out folder is in the place of a body",
        "id lane error",
        "suppressed trace_id",
    ),
    Event.CONSOLE_STARTED: EventSchema(
        "info",
        "the server of the console listens",
        "listen token read_only",
        own={"token": Field(bool, "true if requests need a token")},
    ),
    Event.CONSOLE_STOPPED: EventSchema("info", "the server of the console has stopped"),
    Event.CONSOLE_ACTION: EventSchema(
        "info",
        "a caller of the console or the HTTP API changed something",
        "action by peer",
        "target result",
        {"by": Field(str, "`token`, `local` or the name of a session"), "peer": _PEER},
    ),
    Event.CONSOLE_DENIED: EventSchema(
        "warning",
        "the server of the console refused a request",
        "why peer method path",
        "suppressed",
        {"why": Field(str, "reason of the refusal"), "peer": _PEER, "path": _REQUEST_PATH},
    ),
    Event.CONSOLE_REDIS: EventSchema(
        "warning",
        "Redis does not answer the server of the console, or answers it again",
        "message",
        own={"message": Field(str, "what happened, and what follows")},
    ),
    Event.CONSOLE_BUG: EventSchema(
        "error", "a bug ended a request to the console", "error trace path", own={"path": _REQUEST_PATH}
    ),
    Event.LIBRARY: EventSchema("warning", "a warning of a library", "library message", "suppressed"),
}


def fields_of(event: Event) -> dict[str, Field]:
    """Return the fields of an event, apart from `event` and `level`."""
    schema = EVENTS[event]
    names = [*schema.always.split(), *schema.at_times.split()]
    return COMMON | {name: schema.own.get(name) or FIELDS[name] for name in names}


def _line_type(event: Event) -> Any:
    """Return the struct of the lines of an event."""
    schema, fields = EVENTS[event], fields_of(event)
    level = Literal[schema.level]  # type: ignore[name-defined]
    required: list[Any] = [("level", Annotated[level, msgspec.Meta(description="severity")])]
    optional: list[Any] = []
    for name, (type_, means) in fields.items():
        described: Any = Annotated[type_, msgspec.Meta(description=means)]
        if name in schema.at_times.split():
            optional.append((name, described | msgspec.UnsetType, msgspec.UNSET))
        else:
            required.append((name, described))
    return msgspec.defstruct(
        event.value,
        required + optional,
        tag_field="event",
        tag=event.value,
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )


LINES: dict[Event, Any] = {event: _line_type(event) for event in Event}
"""The struct of the lines of each event."""

LINE_DECODER = msgspec.json.Decoder(Union[tuple(LINES.values())])  # noqa: UP007 the members are not known
"""Decodes a log line; raises msgspec.ValidationError if it does not fit the registry."""
