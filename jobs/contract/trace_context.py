"""The trace that a fetch is part of (W3C Trace Context, level 1). Each check raises InvalidFetchError. Pure.

A traceparent is `version-trace_id-parent_id-flags`; a tracestate is what vendors add to it.
"""

import re

from fetchfleet.jobs.errors import InvalidFetchError

MAX_TRACEPARENT_CHARS = 512
"""Later versions may be longer than the 55 characters of version 00."""
MAX_TRACESTATE_CHARS = 512
MAX_TRACESTATE_MEMBERS = 32

# §3.2.2. A later version begins like version 00, and what it adds stands behind a hyphen (§4.3).
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
# §3.3.1: a key, and a value of printable ASCII without comma, equals sign or a space at its end.
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")

_KNOWN_FLAGS = 0b11
"""Sampled, and random (level 2 §3.2.2.5); all others must be zero when written (§3.2.2.5.2)."""


def trace_id(traceparent: str) -> str:
    """Return the trace id, 32 hex digits; traceparent has been checked."""
    return traceparent[3:35]


def child(traceparent: str, span_id: str) -> str:
    """Return the traceparent for the fetch's span in the same trace.

    It has version 00, the supported one, whatever the caller's version (§4.3).
    """
    flags = int(traceparent[53:55], 16) & _KNOWN_FLAGS
    return f"00-{trace_id(traceparent)}-{span_id}-{flags:02x}"


def check(traceparent: str | None, tracestate: str | None) -> None:
    """Require what may be sent on; a tracestate means nothing without its traceparent (§3.3.1.1)."""
    if traceparent is not None:
        _check_parent(traceparent)
    if tracestate is None:
        return
    if traceparent is None:
        raise InvalidFetchError("tracestate: means nothing without a traceparent; give both or none")
    if len(tracestate) > MAX_TRACESTATE_CHARS:
        raise InvalidFetchError(f"tracestate: has more than {MAX_TRACESTATE_CHARS} characters")
    members = [member.strip(" ") for member in tracestate.split(",")]
    if tracestate != tracestate.strip(" ") or not all(
        _MEMBER.fullmatch(member) for member in members if member
    ):
        raise InvalidFetchError("tracestate: is not key=value,key=value in printable ASCII")
    if len(members) > MAX_TRACESTATE_MEMBERS:
        raise InvalidFetchError(f"tracestate: has more than {MAX_TRACESTATE_MEMBERS} members")
    names = [member.partition("=")[0] for member in members if member]
    if not names or len(names) != len(set(names)):
        raise InvalidFetchError("tracestate: is empty, or names a key twice")


def _check_parent(value: str) -> None:
    found = _PARENT.fullmatch(value) if len(value) <= MAX_TRACEPARENT_CHARS else None
    if found is None:
        raise InvalidFetchError(
            "traceparent: is not version-trace_id-parent_id-flags, with 2, 32, 16 and 2 lower-case hex digits"
        )
    version, of_trace, parent, _, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        raise InvalidFetchError("traceparent: version ff does not exist, and 00 has 55 characters")
    if not of_trace.strip("0") or not parent.strip("0"):
        raise InvalidFetchError("traceparent: a trace or parent id of zeros alone is none")
