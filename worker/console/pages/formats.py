"""Numbers, times and states in the form in which pages show them. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from fetchfleet.worker.policy.pairs import encoded
from fetchfleet.worker.util.quantities import age

MAX_SHOWN_MS = 253_370_764_800_000
"""The beginning of the year 9999, Unix ms. A later time is not shown."""
FAST_PER_S = 100
"""From this rate on, decimals are left out."""
UNKNOWN = "?"
FIRST_BAD_STATUS, FIRST_FAILURE_STATUS = 400, 500


class Look(NamedTuple):
    """The look of a state: icon, tone and word, so that no state is distinguished by its colour alone."""

    icon: str
    tone: str
    """ok, run, warn, bad, or empty for a state that needs no attention."""
    label: str


class Size(NamedTuple):
    """A number of bytes, in the largest unit of which it has one or more."""

    number: str
    unit: str


LOOKS = {
    "busy": Look("play", "run", "busy"),
    "waiting": Look("clock", "", "waiting"),
    "cooling": Look("cool", "warn", "cooling"),
    "breaker": Look("broken", "bad", "breaker"),
    "pacing": Look("gauge", "", "pacing"),
    "quota": Look("quota", "warn", "quota"),
    "paused": Look("pause", "warn", "paused"),
    "robots": Look("file", "warn", "robots"),
    "retry": Look("retry", "warn", "retry"),
    "idle": Look("dash", "", "idle"),
    "no worker": Look("slash", "bad", "no worker"),
    "submitting": Look("up", "run", "submitting"),
    "running": Look("half", "run", "running"),
    "cancelling": Look("slash", "warn", "cancelling"),
    "ended": Look("check", "ok", "ended"),
    "cancelled": Look("slash", "", "cancelled"),
    "stored": Look("check", "ok", "stored"),
    "unchanged": Look("same", "ok", "unchanged"),
    "failed": Look("cross", "bad", "failed"),
    "working": Look("check", "ok", "working"),
    "drained": Look("pause", "warn", "drained"),
    "no disk": Look("alert", "bad", "no disk"),
    "good status": Look("check", "ok", "good"),
    "refusal": Look("alert", "warn", "refusal"),
    "failure": Look("cross", "bad", "failure"),
    "debug": Look("dash", "", "debug"),
    "info": Look("info", "run", "info"),
    "warning": Look("alert", "warn", "warning"),
    "error": Look("error", "bad", "error"),
}


def state_look(name: str) -> Look:
    """Return the look of a state. A state that this version does not know has its name only."""
    return LOOKS.get(name) or Look("circle", "", name)


def answer_look(what: str) -> str:
    """Return the state that stands for a response: by its status, or the failure."""
    if not (what.isascii() and what.isdigit()):
        return "failure"
    status = int(what[:4])
    if status < FIRST_BAD_STATUS:
        return "good status"
    return "refusal" if status < FIRST_FAILURE_STATUS else "failure"


def number(value: int) -> str:
    """Return a number with separators of thousands."""
    return f"{value:,}"


def rate(value: float) -> str:
    """Return a rate, with a decimal if it is small."""
    return f"{value:,.0f}" if value >= FAST_PER_S else f"{value:.1f}"


def size_parts(number_of_bytes: float) -> Size:
    """Return a number of bytes with its unit."""
    value = float(max(0, number_of_bytes))
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return Size(f"{value:.0f}" if unit == "B" or value >= FAST_PER_S else f"{value:.1f}", unit)
        value /= 1000
    return Size(f"{value:,.1f}", "TB")


def size(number_of_bytes: float) -> str:
    """Return a number of bytes with its unit, as text."""
    return " ".join(size_parts(number_of_bytes))


def duration(seconds: float) -> str:
    """Return the duration of a fetch."""
    return (
        f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 120 else age(seconds)
    )


def percent(done: int, total: int) -> str:
    """Return the share of the fetches that have a result. It is 100 % only if all have one."""
    return f"{min(100, done * 100 // total)} %" if total else "0 %"


def share(part: float) -> str:
    """Return a fraction in percent."""
    return f"{part * 100:.0f} %"


def by_number(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return counts, the largest first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}" if text else ""


def segment(text: object) -> str:
    """Return a text as one segment or value of a URL."""
    return quote(str(text), safe="")


def moment(at_ms: int) -> Markup | str:
    """Return a date and time of day in UTC."""
    return _time(at_ms, "%Y-%m-%d %H:%M:%S")


def clock(at_ms: int) -> Markup | str:
    """Return a time of day in UTC."""
    return _time(at_ms, "%H:%M:%S")


def tick(at_ms: int) -> Markup | str:
    """Return a time of day in UTC, with milliseconds."""
    return _time(at_ms, "%H:%M:%S", fraction=True)


def until(until_ms: int | None, now_ms: int) -> Markup | str:
    """Return how long it is until a time; empty if it is not known or has passed."""
    if until_ms is None or until_ms <= now_ms or until_ms >= MAX_SHOWN_MS:
        return ""
    at = datetime.fromtimestamp(until_ms / 1000, UTC)
    return Markup('<time datetime="{}" title="until {}">{}</time>').format(
        at.isoformat(timespec="seconds"), at.strftime("%H:%M:%S"), f"{age((until_ms - now_ms) / 1000)}"
    )


def _time(at_ms: int, form: str, *, fraction: bool = False) -> Markup | str:
    if not 0 < at_ms < MAX_SHOWN_MS:
        return UNKNOWN
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    shown = f"{at.strftime(form)}.{at_ms % 1000:03d}" if fraction else at.strftime(form)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds" if fraction else "seconds"),
        at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        shown,
    )


def slowest(unread: Mapping[str, int]) -> str:
    """Return the name of the consumer group with the most unread results."""
    return max(unread, key=lambda group: (unread[group], group))


FILTERS = {
    of.__name__: of
    for of in (
        *(
            answer_look,
            number,
            rate,
            size_parts,
            size,
            age,
            duration,
            percent,
            share,
            by_number,
        ),
        *(sentence, segment, encoded, moment, clock, tick, until, slowest),
    )
}
