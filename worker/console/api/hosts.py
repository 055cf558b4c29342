"""The operations on hosts: list, explain, pause, resume, reset, policy keys."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fetchfleet.worker.console.actions import PolicyChange, actions_of
from fetchfleet.worker.console.api.operations import Operation, answer, body_of, query_of
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import services_of
from fetchfleet.worker.inspect.overview import LANE_STATES
from fetchfleet.worker.inspect.views.hosts import (
    HostDetail,
    HostPage,
    HostQuery,
    HostSort,
    host_detail,
    hosts,
)
from fetchfleet.worker.lanes.reset import LaneReset
from fetchfleet.worker.policy.names import DEFAULT, EVERY_HOST_BELOW, host_named

MAX_KEYS = 100


class HostsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a list of hosts."""

    state: Annotated[str, msgspec.Meta(extra_json_schema={"enum": ["", *LANE_STATES]})] = ""
    """Show only hosts in this state."""
    text: Annotated[str, msgspec.Meta(max_length=255)] = ""
    """Show only hosts with this text in their name."""
    sort: HostSort = HostSort.WAITING
    """The order of the list."""
    reverse: bool = False
    """Reverse the order."""
    offset: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    """The number of hosts to skip."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    """The maximum number of hosts."""


class ResumeQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query parameters of a resumption."""

    excepted: bool = False
    """Resume the host although a wider pause covers it, as an exception."""


class ResetReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a reset."""

    lanes: list[LaneReset]
    """The hosts that were reset; none if Redis knows no such host."""


PolicyKeys = Annotated[dict[str, Any], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]


async def get_hosts(request: Request) -> Response:
    """List hosts with their states."""
    query = query_of(request, HostsQuery)
    if query.state and query.state not in LANE_STATES:
        raise ProblemError(422, f"state: must be one of {', '.join(LANE_STATES)}")
    wanted = HostQuery(**msgspec.structs.asdict(query))
    return answer(await services_of(request).read(hosts, wanted))


async def get_host(request: Request) -> Response:
    """Explain the state of a host."""
    name = host_named(request.path_params["host"])
    if name == DEFAULT or name.startswith(EVERY_HOST_BELOW):
        raise ProblemError(422, f"{name} stands for several hosts; name one of them")
    return answer(await services_of(request).read(host_detail, name))


async def post_pause(request: Request) -> Response:
    """Pause a host."""
    return answer(await actions_of(request).pause(request.path_params["host"]))


async def post_resume(request: Request) -> Response:
    """Resume a host."""
    query = query_of(request, ResumeQuery)
    change = await actions_of(request).resume(request.path_params["host"], excepted=query.excepted)
    return answer(change)


async def post_reset(request: Request) -> Response:
    """Reset the state of a host."""
    return answer(ResetReceipt(lanes=await actions_of(request).reset(request.path_params["host"])))


async def put_policy(request: Request) -> Response:
    """Set policy keys of a host."""
    keys = await body_of(request, PolicyKeys)
    return answer(await actions_of(request).set_policy(request.path_params["host"], keys))


HOST = "/v1/hosts/{host}"
OPERATIONS = [
    Operation("GET", "/v1/hosts", get_hosts, "List hosts with their states.", HostPage, query=HostsQuery),
    Operation("GET", HOST, get_host, "Explain why a host waits, and until when.", HostDetail),
    Operation("POST", f"{HOST}/pause", post_pause, "Start no more fetches to a host.", PolicyChange),
    Operation(
        "POST", f"{HOST}/resume", post_resume, "End the pause of a host.", PolicyChange, query=ResumeQuery
    ),
    Operation(
        "POST",
        f"{HOST}/reset",
        post_reset,
        "Close the breaker and end the cool-down of a host.",
        ResetReceipt,
    ),
    Operation(
        "PUT",
        f"{HOST}/policy",
        put_policy,
        "Set policy keys of a host; null removes a key that was set.",
        PolicyChange,
        body=PolicyKeys,
    ),
]
