"""Forms of the pages: every POST has the form token of its session. Login and logout are two of them."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fetchfleet.worker.console.access.guard import new_session, peer_of, session_cookie
from fetchfleet.worker.console.bodies import media_type_of, read_body
from fetchfleet.worker.console.html import page
from fetchfleet.worker.console.problems import ProblemError
from fetchfleet.worker.console.services import caller_of, services_of
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.util.clock import mono_s

TOKEN_FIELD = "form_token"  # noqa: S105 the name of a field
MAX_FORM_BYTES = 1 << 18
MAX_FIELDS = 2000
FORM_TIMEOUT_S = 30.0
"""The time in which a form must arrive. A login needs no token, so it must not hold a connection for long."""

_OWN_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")

Form = Mapping[str, list[str]]
"""The values of a form, by field."""
FormHandler = Callable[[Request, Form], Awaitable[Response]]


def form_route(path: str, handler: FormHandler) -> Route:
    """Return the route of a form. The handler gets requests with a valid form token only."""

    async def receive(request: Request) -> Response:
        form = await read_form(request)
        session, sessions = caller_of(request).session, services_of(request).sessions
        given = form.get(TOKEN_FIELD, [""])[0]
        if session is None or not sessions.is_form_token(session, given):
            raise ProblemError(403, "the form is out of date; reload the page and send it again", "form")
        return await handler(request, form)

    return Route(path, receive, methods=["POST"], name=handler.__name__)


async def read_form(request: Request) -> Form:
    """Return the values of a form. Raises ProblemError if it is too large or malformed."""
    if media_type_of(request) != "application/x-www-form-urlencoded":
        raise ProblemError(415, "a form must be application/x-www-form-urlencoded")
    try:
        async with asyncio.timeout(FORM_TIMEOUT_S):
            body = await read_body(request, MAX_FORM_BYTES)
    except TimeoutError:
        raise ProblemError(408, f"the form was not complete within {FORM_TIMEOUT_S:g} s") from None
    form: dict[str, list[str]] = {}
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise ProblemError(400, "the form is not UTF-8, or has too many fields") from None
    for name, value in fields:
        form.setdefault(name, []).append(value)
    return form


def own_path(text: str) -> str:
    """Return the path if it is one of this server; else the front page."""
    return text if _OWN_PATH.fullmatch(text) else "/"


async def login_page(request: Request) -> Response:
    """Show the login."""
    then = own_path(request.query_params.get("next", "/"))
    if services_of(request).token is None:
        return RedirectResponse(then, 303)
    return page(request, "login.html", then=then, error="")


async def login(request: Request) -> Response:
    """Begin a session for a browser that sends the token."""
    services, form = services_of(request), await read_form(request)
    then = own_path(form.get("next", ["/"])[0])
    peer = peer_of(request.scope)
    wait_s = services.logins.wait_s(peer, mono_s())
    if wait_s > 0:
        error = f"too many failed logins; try again in {math.ceil(wait_s)} s"
        response = page(request, "login.html", HTTPStatus.TOO_MANY_REQUESTS, then=then, error=error)
        response.headers["Retry-After"] = str(math.ceil(wait_s))
        return response
    if services.token is None or not services.token.matches(form.get("token", [""])[0].strip()):
        services.logins.failed(peer, mono_s())
        services.log.warning(Event.CONSOLE_DENIED, why="wrong token", peer=peer, method="POST", path="/login")
        error = "this is not the token of the server"
        return page(request, "login.html", HTTPStatus.FORBIDDEN, then=then, error=error)
    session = new_session(services)
    services.log.info(Event.CONSOLE_ACTION, action="login", by=session.name, peer=peer)
    response = RedirectResponse(then, 303)
    response.headers.append("Set-Cookie", session_cookie(services, request.scope, session))
    return response


async def logout(request: Request, _: Form) -> Response:
    """End the session."""
    services, caller = services_of(request), caller_of(request)
    assert caller.session is not None
    services.sessions.end(caller.session, mono_s())
    services.log.info(Event.CONSOLE_ACTION, action="logout", by=caller.name, peer=caller.peer)
    response = RedirectResponse("/login", 303)
    response.headers.append("Set-Cookie", session_cookie(services, request.scope, None))
    return response


ROUTES = [
    Route("/login", login_page, methods=["GET"]),
    Route("/login", login, methods=["POST"]),
    form_route("/logout", logout),
]
