"""The names of log fields by OpenTelemetry's semantic conventions and by the Elastic Common Schema. Pure.

Workers import this module only if they are set to one of these schemas. A field without a counterpart is
named `fetchfleet.FIELD`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Line = Mapping[str, Any]
Rename = Callable[[Line], dict[str, Any]]
"""Returns a line with the names of a schema."""

_Convert = Callable[[Any], dict[str, Any]]
"""Returns the fields that take the place of one whose value has another form in the schema."""

_OUTCOMES = {"stored": "success", "unchanged": "success", "failed": "failure", "cancelled": "unknown"}


def _nanoseconds(name: str) -> _Convert:
    """Convert from ms."""
    return lambda ms: {name: None if ms is None else round(ms * 1e6)}


def _without_prefix(name: str) -> _Convert:
    """Convert `HTTP/1.1` to `1.1`."""
    return lambda version: {name: None if version is None else version.rpartition("/")[2]}


def _list(name: str) -> _Convert:
    return lambda value: {name: None if value is None else [value]}


def _address_and_port(address_name: str, port_name: str) -> _Convert:
    def convert(peer: str | None) -> dict[str, Any]:
        if peer is None:
            return {address_name: None, port_name: None}
        address, _, port = peer.rpartition(":")
        return {address_name: address.strip("[]"), port_name: int(port)}

    return convert


def _outcome(value: str) -> dict[str, Any]:
    return {"event.outcome": _OUTCOMES[value], "fetchfleet.outcome": value}


class Names(NamedTuple):
    """The name of a field in each schema."""

    otel: str | _Convert
    ecs: str | _Convert


def _own(name: str) -> Names:
    return Names(f"fetchfleet.{name}", f"fetchfleet.{name}")


NAMES = {
    "bytes": Names("http.response.body.size", "http.response.body.bytes"),
    "content_type": Names(_list("http.response.header.content-type"), "fetchfleet.content_type"),
    "error": Names("exception.message", "error.message"),
    "event": Names("event_name", "event.action"),
    "instance": Names("fetchfleet.instance", "service.ephemeral_id"),
    "level": Names("severity_text", "log.level"),
    "library": Names("otel.scope.name", "log.logger"),
    "message": Names("body", "message"),
    "method": Names("http.request.method", "http.request.method"),
    "ms": Names("fetchfleet.ms", _nanoseconds("event.duration")),
    "note": Names("fetchfleet.note", "error.message"),
    "outcome": Names("fetchfleet.outcome", _outcome),
    "peer": Names(
        _address_and_port("network.peer.address", "network.peer.port"),
        _address_and_port("destination.ip", "destination.port"),
    ),
    "protocol": Names(_without_prefix("network.protocol.version"), _without_prefix("http.version")),
    "python": Names("process.runtime.version", "fetchfleet.python"),
    "reason": Names("error.type", "event.reason"),
    "status": Names("http.response.status_code", "http.response.status_code"),
    "timestamp": Names("timestamp", "@timestamp"),
    "total_ms": Names("fetchfleet.total_ms", _nanoseconds("event.duration")),
    "trace": Names("exception.stacktrace", "error.stack_trace"),
    "trace_id": Names("trace_id", "trace.id"),
    "url": Names("url.full", "url.full"),
    "version": Names("service.version", "service.version"),
    "worker": Names("service.instance.id", "service.node.name"),
}
"""The names of fields in all events."""

EVENT_NAMES = {
    "console.action": {"peer": Names("client.address", "client.address")},
    "console.bug": {"path": Names("url.path", "url.path")},
    "console.denied": {
        "path": Names("url.path", "url.path"),
        "peer": Names("client.address", "client.address"),
    },
    "console.started": {"token": _own("token_required")},
    "fetch.exchange": {
        "version": Names(_without_prefix("network.protocol.version"), _without_prefix("http.version"))
    },
    "fleet.status": {"inbox": _own("inbox_messages"), "lanes": _own("lanes_by_state")},
    "worker.heartbeat": {"reused": _own("connections_reused")},
}
"""The names of the fields that have another meaning or type in an event."""

CONSTANTS = {
    "otel": {"service.name": "fetchfleet"},
    "ecs": {"ecs.version": "8.11.0", "service.name": "fetchfleet"},
}
"""The fields that every line has in addition, by schema."""


def renaming(schema: str) -> Rename:
    """Return a function that renames the fields of a line. schema: `otel` or `ecs`."""
    names = {name: getattr(names, schema) for name, names in NAMES.items()}
    in_events = {
        event: {**names, **{name: getattr(own, schema) for name, own in fields.items()}}
        for event, fields in EVENT_NAMES.items()
    }
    constants = CONSTANTS[schema]

    def rename(line: Line) -> dict[str, Any]:
        renamed: dict[str, Any] = {}
        targets = in_events.get(line["event"], names)
        for name, value in line.items():
            target = targets.get(name)
            if target is None:
                target = targets[name] = f"fetchfleet.{name}"
            if isinstance(target, str):
                renamed[target] = value
            else:
                renamed.update(target(value))
        return renamed | constants

    return rename
