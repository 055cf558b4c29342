"""W3C Trace Context (level 1) of a fetch. Section numbers are of that specification. Pure.

A traceparent is `version-trace_id-parent_id-flags`. A tracestate is a list of vendor-specific members.
"""

import re

from fetchfleet.jobs.errors import InvalidFetchError

MAX_TRACEPARENT_CHARS = 512
"""Version 00 has 55 characters; later versions may be longer."""
MAX_TRACESTATE_CHARS = 512
MAX_TRACESTATE_MEMBERS = 32

# §3.2.2. A later version has the fields of version 00, then a hyphen and its own (§4.3).
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
# §3.3.1: a key, and a value of printable ASCII without comma, equals sign or trailing space.
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")

_KNOWN_FLAGS = 0b11
"""The flags sampled and random (level 2 §3.2.2.5). The others must be sent as zero (§3.2.2.5.2)."""


def trace_id(traceparent: str) -> str:
    """Return the trace ID, 32 hex digits, of a valid traceparent."""
    return traceparent[3:35]


def child(traceparent: str, span_id: str) -> str:
    """Return the traceparent of a span in the same trace, in version 00 (§4.3)."""
    flags = int(traceparent[53:55], 16) & _KNOWN_FLAGS
    return f"00-{trace_id(traceparent)}-{span_id}-{flags:02x}"


def check(traceparent: str | None, tracestate: str | None) -> None:
    """Require a valid traceparent, and a tracestate only with one (§3.3.1.1). Raises InvalidFetchError."""
    if traceparent is not None:
        _check_parent(traceparent)
    if tracestate is None:
        return
    if traceparent is None:
        raise InvalidFetchError("tracestate: needs a traceparent; set both or neither")
    if len(tracestate) > MAX_TRACESTATE_CHARS:
        raise InvalidFetchError(f"tracestate: must have at most {MAX_TRACESTATE_CHARS} characters")
    members = [member.strip(" ") for member in tracestate.split(",")]
    if tracestate != tracestate.strip(" ") or not all(
        _MEMBER.fullmatch(member) for member in members if member
    ):
        raise InvalidFetchError("tracestate: is not key=value,key=value in printable ASCII")
    if len(members) > MAX_TRACESTATE_MEMBERS:
        raise InvalidFetchError(f"tracestate: must have at most {MAX_TRACESTATE_MEMBERS} members")
    names = [member.partition("=")[0] for member in members if member]
    if not names or len(names) != len(set(names)):
        raise InvalidFetchError("tracestate: is empty, or has a key twice")


def _check_parent(value: str) -> None:
    found = _PARENT.fullmatch(value) if len(value) <= MAX_TRACEPARENT_CHARS else None
    if found is None:
        raise InvalidFetchError(
            "traceparent: is not version-trace_id-parent_id-flags, with 2, 32, 16 and 2 lower-case hex digits"
        )
    version, trace, parent, _, extra = found.groups()
    if version == "ff" or (version == "00" and extra is not None):
        raise InvalidFetchError("traceparent: version ff is invalid, and version 00 has 55 characters")
    if not trace.strip("0") or not parent.strip("0"):
        raise InvalidFetchError("traceparent: a trace ID or parent ID of only zeros is invalid")
