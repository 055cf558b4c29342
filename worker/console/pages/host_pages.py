"""The pages of hosts: the list, and one host or pattern with its limits and actions."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fetchfleet.jobs.redis_connection import redis_now_ms
from fetchfleet.worker.console.actions import Actions, actions_of
from fetchfleet.worker.console.forms import Form, form_route
from fetchfleet.worker.console.html import Notice, page, redirect_with
from fetchfleet.worker.console.pages.fleet_page import shared_snapshot
from fetchfleet.worker.console.pages.formats import segment
from fetchfleet.worker.console.pages.live import Context, bounded, live_page, live_route
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.overview import LANE_STATES
from fetchfleet.worker.inspect.policy_in_force import Origin, short
from fetchfleet.worker.inspect.views.hosts import HostDetail, HostQuery, HostSort, host_detail, host_page
from fetchfleet.worker.lanes.reset import LaneReset
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW, host_named
from fetchfleet.worker.policy.pairs import parsed
from fetchfleet.worker.policy.pauses import PAUSED, pauses_of
from fetchfleet.worker.policy.published import NO_FILE

PAGE_ROWS = 100
MAX_TEXT_CHARS = 255
NAMES_SHOWN = 5

COLUMNS = (
    ("Host", HostSort.HOST, ""),
    ("State", HostSort.STATE, "w-l"),
    ("Until", HostSort.UNTIL, "w-m num"),
    ("Why", None, ""),
    ("In flight", HostSort.IN_FLIGHT, "w-m num"),
    ("Waiting", HostSort.WAITING, "w-m num"),
    ("Worker", HostSort.WORKER, "w-xl"),
)
"""The columns of the list: label, sort and classes."""
LARGEST_FIRST = {HostSort.IN_FLIGHT, HostSort.WAITING}


class HostColumn(NamedTuple):
    """A column of the list."""

    label: str
    css: str
    href: str
    """The link that sorts by it, or reverses that; empty if it cannot be sorted."""
    order: str
    """`ascending` or `descending` if the list is sorted by it, else empty."""


class HostLinks:
    """The links of the list that keep its other settings."""

    def __init__(self, query: HostQuery) -> None:
        self._query = query

    def state(self, state: str) -> str:
        """Return the link to the hosts in a state."""
        return self._link(state=state, offset=0)

    def offset(self, offset: int) -> str:
        """Return the link to another page."""
        return self._link(offset=offset)

    def sort(self, sort: HostSort, *, reverse: bool) -> str:
        """Return the link to another order."""
        return self._link(sort=sort, reverse=reverse, offset=0)

    def _link(self, **changes: Any) -> str:
        query = msgspec.structs.replace(self._query, **changes)
        fields = {
            "q": query.text,
            "state": query.state,
            "sort": query.sort if query.sort != HostSort.WAITING else "",
            "reverse": "1" if query.reverse else "",
            "offset": query.offset or "",
        }
        given = urlencode({name: value for name, value in fields.items() if value})
        return f"/hosts?{given}" if given else "/hosts"


def host_query(parameters: Mapping[str, str]) -> HostQuery:
    """Return the selection of a request. Values that are not known are left out."""
    sort, offset = parameters.get("sort", ""), parameters.get("offset", "")
    state = parameters.get("state", "")
    return HostQuery(
        state=state if state in LANE_STATES else "",
        text=parameters.get("q", "").strip()[:MAX_TEXT_CHARS],
        sort=HostSort(sort) if sort in set(HostSort) else HostSort.WAITING,
        reverse=parameters.get("reverse") == "1",
        offset=int(offset) if offset.isascii() and offset.isdigit() and len(offset) < 9 else 0,
        limit=PAGE_ROWS,
    )


def columns(query: HostQuery) -> list[HostColumn]:
    """Return the columns of the list."""
    links, found = HostLinks(query), []
    for label, sort, css in COLUMNS:
        if sort is None:
            found.append(HostColumn(label, css, "", ""))
            continue
        is_current = sort == query.sort
        descending = (sort in LARGEST_FIRST) != query.reverse
        order = ("descending" if descending else "ascending") if is_current else ""
        href = links.sort(sort, reverse=is_current and not query.reverse)
        found.append(HostColumn(label, css, href, order))
    return found


async def read_hosts(request: Request) -> Context:
    """Read the list of hosts."""
    query = host_query(request.query_params)
    page = host_page(await shared_snapshot(services_of(request)), query)
    return {
        "section": "hosts",
        "now_ms": page.now_ms,
        "page": page,
        "query": query,
        "links": HostLinks(query),
        "columns": columns(query),
        "sorts": [(sort.value, label.lower()) for label, sort, _ in COLUMNS if sort],
    }


async def find_host(request: Request) -> Response:
    """Go to the page of the host that is named in any form."""
    return RedirectResponse(f"/hosts/{segment(_named(request.query_params.get('host', '')))}", 303)


async def show_host(request: Request) -> Response:
    """Show one host, or a pattern or `default`, which stand for several."""
    name = _named(request.path_params["host"])
    if name == DEFAULT or name.startswith(EVERY_HOST_BELOW):
        return page(request, "pattern.html", **await bounded(_read_pattern(request, name)))
    return await live_page(request, "host.html", read_host)


async def read_host(request: Request) -> Context:
    """Read one host."""
    services, name = services_of(request), _named(request.path_params["host"])
    detail = await services.read(host_detail, name)
    limits = sorted(detail.limits, key=lambda limit: (limit.source == "default", limit.source == "file"))
    return {
        "section": "hosts",
        "now_ms": await services.read(redis_now_ms),
        "detail": detail,
        "lane": detail.lane,
        "pause": detail.pause,
        "limits": limits,
        "policy_source": policy_source(detail),
    }


def policy_source(detail: HostDetail) -> str:
    """Return in words where the policy file comes from."""
    if detail.policy_origin == Origin.ASSUMED:
        return "the defaults are assumed"
    return (
        "no policy file" if detail.policy_digest == NO_FILE else f"policy file {short(detail.policy_digest)}"
    )


async def _read_pattern(request: Request, name: str) -> Context:
    current = await services_of(request).read(overrides.read)
    table = {key: value for key, value in current.tables.get(name, {}).items() if key != PAUSED}
    return {
        "section": "hosts",
        "name": name,
        "table": table,
        "is_paused": name in pauses_of(current, {}).paused,
        "keys": [key for key in LanePolicy.__struct_fields__ if key != PAUSED],
    }


async def change_host(request: Request, form: Form) -> Response:
    """Pause, resume or reset a host, or set one of its limits."""
    name, action = _named(request.path_params["host"]), form.get("action", [""])[0]
    try:
        text = await _changed(actions_of(request), name, action, form)
    except PolicyError as error:
        notice = Notice("failed", str(error))
    else:
        notice = Notice("done", text)
        services_of(request).pages.forget()
    return redirect_with(request, f"/hosts/{segment(name)}", notice)


async def _changed(actions: Actions, name: str, action: str, form: Form) -> str:
    """Do what a form asks for; return in words what was done. Raises PolicyError."""
    key, value = (form.get(field, [""])[0].strip() for field in ("key", "value"))
    match action:
        case "pause":
            changed = await actions.pause(name)
            exceptions = changed.not_stopped
            more = f" Exceptions continue: {', '.join(exceptions[:NAMES_SHOWN])}." if exceptions else ""
            if not changed.known:
                meant = f" Did you mean {' or '.join(changed.similar)}?" if changed.similar else ""
                more += f" No fetch was sent there recently.{meant}"
            return f"{name} is paused. Fetches in flight finish.{more}"
        case "resume":
            await actions.resume(name)
            return f"{name} is resumed."
        case "except":
            await actions.resume(name, excepted=True)
            return f"{name} is resumed, as an exception from wider pauses."
        case "reset":
            return reset_text(name, await actions.reset(name))
        case "set":
            await actions.set_policy(name, parsed([f"{key}={value}"]))
            return f"{key} of {name} is {value}. Workers apply it within about a second."
        case "unset":
            await actions.set_policy(name, {key: None})
            return f"{key} of {name} is as in the policy file again."
    raise ProblemError(422, f"{action!r} is not an action")


def reset_text(name: str, resets: list[LaneReset]) -> str:
    """Return in words what a reset does."""
    if not resets:
        return f"{name}: nothing to reset, because no fetch was sent there recently."
    parts = sorted({part.replace("_", "-") for of in resets for part in of.reset})
    retries = sum(of.retries for of in resets)
    hosts = name if len(resets) == 1 else f"{len(resets):,} hosts"
    due = f" {retries:,} {'retry is' if retries == 1 else 'retries are'} due now." if retries else ""
    return f"{hosts} reset: {', '.join(parts) if parts else 'nothing to clear'}.{due}"


def _named(text: str) -> str:
    """Return the host, pattern or `default` of a request. Raises ProblemError."""
    try:
        return host_named(text)
    except PolicyError as error:
        raise ProblemError(404, str(error)) from None


ROUTES = [
    live_route("/hosts", "hosts.html", read_hosts),
    Route("/hosts/find", find_host, methods=["GET"]),
    Route("/hosts/{host:path}", show_host, methods=["GET"]),
    form_route("/hosts/{host:path}", change_host),
]
