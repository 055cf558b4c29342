"""The fields of log events: their JSON types and meanings.

A field has one meaning in all events, unless an event states its own.
"""

from typing import Any, Literal, NamedTuple

from fetchfleet.jobs.contract.fetch import Priority
from fetchfleet.jobs.contract.result import Outcome, Reason


class Field(NamedTuple):
    """The JSON type and the meaning of a field."""

    type: Any
    """A type that msgspec can decode."""
    means: str


COMMON = {
    "timestamp": Field(str, "time of the event: ISO 8601 in UTC, with microseconds"),
    "worker": Field(str, "name of the worker or server (FETCHFLEET_WORKER_ID, or host name and process ID)"),
}
"""The fields of every line, in addition to `event` and `level`."""

FIELDS = {
    "action": Field(str, "what the caller changed, such as `pause`"),
    "arq": Field(int, "arq jobs that no worker has enqueued yet"),
    "attempts": Field(int, "attempts charged to the fetch"),
    "batch": Field(str, "ID of the batch"),
    "batches": Field(list[str], "IDs of the batches"),
    "busy": Field(int, "lanes of the worker with fetches in flight"),
    "by": Field(str, "user and machine of the operator"),
    "bytes": Field(int | None, "size of the body; null without one"),
    "closed": Field(int, "connections to hosts closed in the interval"),
    "connect_ms": Field(
        float | None, "TCP and TLS of the last attempt; 0 if its connection was reused, null if none was made"
    ),
    "content_type": Field(str | None, "Content-Type of the last response, shortened; null without one"),
    "count": Field(int, "number of invalid members"),
    "dead": Field(int, "dead letters"),
    "dns_ms": Field(
        float | None, "name resolution for the connection that the last attempt opened; null without one"
    ),
    "door": Field(Literal["inbox", "arq"], "way in of the message"),
    "down_since_ms": Field(int, "time since when the host is down, Unix time in ms"),
    "draining": Field(int, "live workers that are drained"),
    "due_in_ms": Field(int | None, "time until the lane is due; null if nothing waits in it"),
    "engine": Field(str, "HTTP engine"),
    "error": Field(str, "text of the error, without secrets"),
    "failed": Field(int, "failed calls to Redis during the trouble"),
    "failures": Field(int, "failures in a row that the breaker counted"),
    "fetches": Field(int, "number of fetches"),
    "finished": Field(
        dict[str, dict[str, int]],
        "results since the start, by outcome and reason (`none` without one)",
    ),
    "found": Field(str, "what the key held"),
    "free_bytes": Field(int, "free space of the disk"),
    "free_files": Field(int | None, "free inodes of the disk; null if unknown"),
    "groups": Field(list[str], "names of the consumer groups"),
    "handed_back": Field(int, "claims returned to the lane"),
    "held": Field(int, "lanes that the worker holds, including this one"),
    "hops": Field(int, "redirects followed"),
    "id": Field(str, "ID of the fetch"),
    "in_flight": Field(int, "fetches in flight"),
    "inbox": Field(str, "name of the inbox, if it is a named one"),
    "incidents": Field(int, "cool-downs in a row"),
    "instance": Field(str, "name of the worker with a random suffix, which identifies the process"),
    "interruptions": Field(
        int, "times a deploy, crash or outage returned the claimed fetch, sent or not; no attempt is charged"
    ),
    "interval_s": Field(float, "length of the interval"),
    "key": Field(str, "Redis key"),
    "lacking": Field(int, "live workers that cannot store bodies"),
    "lag_max_ms": Field(float | None, "longest delay of the event loop in the interval"),
    "lag_p50_ms": Field(float | None, "median delay of the event loop in the interval"),
    "lane": Field(str, "name of the lane: host, and port if it is not the default"),
    "lanes": Field(int, "lanes that the worker holds"),
    "lanes_in_all": Field(int, "lanes that are not idle"),
    "lanes_read": Field(int, "lanes that were read for `lanes`, `runnable` and `oldest_s`"),
    "lasted_s": Field(float, "time from the first failed call to the first success after the last one"),
    "lenient": Field(bool, "true if the headers of a response needed lenient parsing"),
    "library": Field(str, "name of the library's logger"),
    "limits": Field(dict[str, float], "limits of the worker, by the names of their settings"),
    "listen": Field(str, "address and port of the server"),
    "log_lines_dropped": Field(int, "log lines since the start that the output did not accept"),
    "loop": Field(str, "name of the loop"),
    "message": Field(str, "text of the warning, without secrets"),
    "messages": Field(int, "messages that were enqueued"),
    "method": Field(str, "method of the request"),
    "more": Field(bool, "true if fetches wait in the lane"),
    "most": Field(int, "maximum length of the stream of all results"),
    "ms": Field(float, "time from the request to the response head"),
    "needs": Field(list[str], "abilities and settings that the fetch needs"),
    "note": Field(str | None, "text of the last error, without secrets; null without an error"),
    "oldest_s": Field(float | None, "age of the oldest waiting fetch in the lanes; null without one"),
    "open": Field(int, "connections to hosts that are open now"),
    "open_files": Field(int, "open descriptors of the process"),
    "opened": Field(int, "connections to hosts dialled in the interval"),
    "origin": Field(str, "scheme, host and port of the robots.txt"),
    "orphans": Field(int, "claims of a dead owner"),
    "others": Field(list[str], "instances with the same name"),
    "out": Field(str, "out folder, or URL of the object store"),
    "spool": Field(str, "folder for bodies that are not yet in the object store"),
    "outcome": Field(Outcome, "outcome of the fetch"),
    "owner": Field(str | None, "instance of the previous owner; null if the lane had none"),
    "path": Field(str | None, "path of the stored body; null without one"),
    "peer": Field(str | None, "address and port of the host, for the last request; null without one"),
    "policy": Field(str, "digest of the policy file, or `defaults`"),
    "pool_wait_p50_ms": Field(float | None, "median time until a request is sent or a connection dialled"),
    "pool_wait_p99_ms": Field(float | None, "99th percentile of that time"),
    "priority": Field(Priority, "priority of the fetch"),
    "protocol": Field(str | None, "version of HTTP of the last response; null without one"),
    "python": Field(str, "version of Python"),
    "quarantined": Field(dict[str, int], "elements of lanes quarantined in the interval, by reason"),
    "queue_ms": Field(float | None, "time from submit to the start of the last attempt; null without one"),
    "read_only": Field(bool, "true if the server refuses changes"),
    "reason": Field(Reason | None, "reason of the failure or of a stale result; null otherwise"),
    "received_bytes": Field(int, "bytes of bodies received since the start"),
    "refused": Field(int, "messages that became dead letters"),
    "reset": Field(list[str], "parts of the host's state that the reset cleared"),
    "result": Field(str, "what the action did"),
    "results": Field(int, "number of results"),
    "retries": Field(dict[str, int], "attempts since the start that another one follows, by reason"),
    "reused": Field(bool | None, "true if the last request used an open connection; null without one"),
    "rss_bytes": Field(int, "resident memory of the process"),
    "runnable": Field(int, "lanes with a waiting fetch that could start now if a worker had a free slot"),
    "settings": Field(dict[str, dict[str, list[str]]], "workers by setting and value"),
    "settling": Field(int, "settlements that wait for Redis"),
    "sink": Field(str, "sink of the bodies"),
    "stale": Field(bool, "true if an older body stands in for a failed fetch"),
    "status": Field(int | None, "status code of the last response; null without one"),
    "suppressed": Field(int, "lines of the same condition that were left out since the last one"),
    "tables": Field(list[str], "names of the policy tables set at run time"),
    "target": Field(str, "what the action was applied to"),
    "tcp_p50_ms": Field(float | None, "median time to connect, including name resolution"),
    "tcp_p99_ms": Field(float | None, "99th percentile of the time to connect"),
    "throttles": Field(int, "responses that asked the client to back off, which are not charged"),
    "tls_ms": Field(
        float | None, "TLS handshake of the connection that the last attempt opened; null without one"
    ),
    "tls_p50_ms": Field(float | None, "median time of TLS handshakes"),
    "tls_p99_ms": Field(float | None, "99th percentile of the time of TLS handshakes"),
    "token": Field(int, "fencing token"),
    "total_ms": Field(float | None, "time from submit to the end"),
    "trace": Field(str, "end of the traceback"),
    "trace_id": Field(str, "trace ID of the fetch's `traceparent`"),
    "ttfb_ms": Field(
        float | None,
        "time from the start of the last attempt to its response; null without one",
    ),
    "unread": Field(dict[str, int], "results that a consumer group has not acknowledged, by group"),
    "until_ms": Field(int, "time at which the lane may start fetches again, Unix time in ms"),
    "url": Field(str, "URL, without secrets"),
    "version": Field(str, "version of fetchfleet"),
    "wait_s": Field(float, "time to wait"),
    "waited_ms": Field(dict[str, float] | None, "parts of queue_ms, by cause"),
    "webhook": Field(str, "ID of the batch that holds the webhook"),
    "waiting": Field(int, "fetches that wait in lanes"),
    "wanted": Field(str, "type that the key must have"),
    "wanting": Field(Literal["bytes", "files", "writing", "folder"], "missing resource"),
    "why": Field(str | None, "reason the gate is closed; null if it is open"),
    "workers": Field(int, "live workers"),
}
