"""The guard before all routes: who calls, what is refused, and the header fields of every response."""

import secrets
import traceback
from urllib.parse import quote

from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fetchfleet.jobs.errors import JobsError
from fetchfleet.worker.console.access.credentials import (
    UNKNOWN_ADDRESS,
    BrowserSession,
    address_of,
    hostname_of,
    is_loopback,
    is_same_origin,
)
from fetchfleet.worker.console.html import problem_page
from fetchfleet.worker.console.problems import problem, response_of
from fetchfleet.worker.console.services import Caller, ConsoleServices
from fetchfleet.worker.observability import redact
from fetchfleet.worker.observability.log import Event, suppressed
from fetchfleet.worker.observability.repeats import Repeats
from fetchfleet.worker.util.clock import mono_s

SECURITY_FIELDS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with `Origin: null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""The header fields of every response."""

API_PATHS = ("/v1/", "/openapi.json", "/metrics")
"""Prefixes of paths for programs. They answer with problem+json, and never redirect to the login."""
PUBLIC_PATHS = ("/healthz", "/login")
"""The paths that need no token, besides static files."""
STATIC_PATHS = "/static/"
"""The prefix of the paths of static files."""
SESSION_PATHS = ("/login", "/logout")
"""The paths that change only the session of the browser, which `--read-only` permits."""
TRACE_LINES = 3
"""The frames of a traceback that are logged."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class DeniedRequestError(Exception):
    """The guard refuses a request. The message is for the caller and the log."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def is_for_programs(path: str) -> bool:
    """Return whether a path belongs to the API."""
    return f"{path}/".startswith(API_PATHS) or path.startswith(API_PATHS)


class Guard:
    """ASGI middleware that checks each request before it is routed."""

    def __init__(self, app: ASGIApp, services: ConsoleServices) -> None:
        self._app = app
        self._services = services
        self._repeats = Repeats()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        request = _Incoming(scope, self._services)
        started = False

        async def send_with_fields(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._add_fields(request, MutableHeaders(scope=message))
            await send(message)

        try:
            response = self._refusal(request)
            if response is not None:
                await response(scope, receive, send_with_fields)
                return
            scope.setdefault("state", {})["caller"] = request.caller
            await self._app(scope, receive, send_with_fields)
        except Exception as error:
            # Starlette wraps an expected error that comes after the head of the response.
            if isinstance(error.__cause__, JobsError | RedisError):
                self._services.log.warning(Event.CONSOLE_REDIS, message=redact.text(error.__cause__))
            else:
                self._log_bug(error, request)
            if not started:
                bug = problem(500, "a bug; see the log of the server", reason="bug")
                await response_of(bug)(scope, receive, send_with_fields)
            else:
                raise  # the connection is closed, so the client sees that the body is incomplete

    def _refusal(self, request: "_Incoming") -> Response | None:
        """Return the response to a request that is not served; None if it is."""
        try:
            request.check_host()
            if request.caller is None and not request.is_public:
                request.check_can_log_in()
                return RedirectResponse(f"/login?next={quote(request.shown_path)}", 303)
            request.check_change()
        except DeniedRequestError as refused:
            self._log_denial(request, str(refused))
            request.new_session = None
            of = problem(refused.status, str(refused), reason="denied")
            if not request.is_for_programs:
                return problem_page(Request(request.scope), of)
            return response_of(of, {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {})
        return None

    def _log_denial(self, request: "_Incoming", why: str) -> None:
        left_out = self._repeats.admit((why, request.peer), mono_s())
        if left_out is not None:
            self._services.log.warning(
                Event.CONSOLE_DENIED,
                why=why,
                peer=request.peer,
                method=request.method,
                path=request.shown_path,
                **suppressed(left_out),
            )

    def _log_bug(self, error: Exception, request: "_Incoming") -> None:
        trace = "".join(traceback.format_exception(error)[-TRACE_LINES:])
        self._services.log.error(
            Event.CONSOLE_BUG,
            error=redact.text(repr(error)),
            trace=redact.text(trace),
            path=request.shown_path,
        )

    def _add_fields(self, request: "_Incoming", headers: MutableHeaders) -> None:
        headers.update(SECURITY_FIELDS)
        headers.setdefault(
            "Cache-Control", "no-cache" if request.path.startswith(STATIC_PATHS) else "no-store"
        )
        if request.new_session is not None:
            headers.append("Set-Cookie", session_cookie(self._services, request.scope, request.new_session))


class _Incoming:
    """A request before it is routed."""

    def __init__(self, scope: Scope, services: ConsoleServices) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.peer = peer_of(scope)
        self.is_for_programs = is_for_programs(self.path)
        self.is_public = self.path in PUBLIC_PATHS or self.path.startswith(STATIC_PATHS)
        self.new_session: BrowserSession | None = None
        """A session that begins with this request."""
        self._services = services
        self.caller = self._caller()
        """None if the request has neither the token nor a valid session."""

    @property
    def shown_path(self) -> str:
        """The path, safe for a log line."""
        return redact.text(self.path)

    def _caller(self) -> Caller | None:
        services = self._services
        session = session_of(self.headers.get("cookie", ""), services)
        if services.token is None:
            if session is None and not self.is_for_programs and not self.is_public:
                session = self.new_session = new_session(services)
            return Caller("local", self.peer, session)
        scheme, _, credentials = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            is_token = services.token.matches(credentials.strip())
            return Caller("token", self.peer) if is_token else None
        return None if session is None else Caller(session.name, self.peer, session)

    def check_can_log_in(self) -> None:
        """Refuse a request without a token that is not one of a browser for a page."""
        if self.is_for_programs or self.method not in SAFE_METHODS:
            raise DeniedRequestError(401, "no token, or a wrong one; send it as: Authorization: Bearer TOKEN")

    def check_host(self) -> None:
        """Without a token, refuse names that are not of this machine: a DNS rebinding attack uses one."""
        hosts = self.headers.getlist("host")
        hostname = hostname_of(hosts[0]) if len(hosts) == 1 else None
        if hostname is None:
            raise DeniedRequestError(400, "the request must have one valid Host header")
        if self._services.token is None and not is_loopback(hostname):
            raise DeniedRequestError(
                403, "without a token the server answers to localhost only; start it with --token-file"
            )

    def check_change(self) -> None:
        """Refuse a change from a page of another origin, by a session without a form, or if read-only."""
        if self.method in SAFE_METHODS:
            return
        origin = self.headers.get("origin")
        from_elsewhere = origin is not None and not is_same_origin(origin, self.headers["host"])
        if from_elsewhere or self.headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
            raise DeniedRequestError(403, "a page of another origin may not change anything here")
        if self._services.read_only and self.path not in SESSION_PATHS:
            raise DeniedRequestError(403, "the server runs with --read-only; nothing can be changed")
        if self.is_for_programs and self.caller and self._services.token and self.caller.session:
            raise DeniedRequestError(401, "a change by the API needs the token: Authorization: Bearer TOKEN")


def peer_of(scope: Scope) -> str:
    """Return the address of the client: that of X-Forwarded-For, if a proxy on this machine sends it."""
    return address_of(scope["client"][0]) if scope.get("client") else UNKNOWN_ADDRESS


def new_session(services: ConsoleServices) -> BrowserSession:
    """Return a new session."""
    return services.sessions.new(secrets.token_hex(16), mono_s())


def session_of(cookie: str, services: ConsoleServices) -> BrowserSession | None:
    """Return the session in a Cookie header; None if there is no valid one."""
    # Lenient, as browsers are: other servers of this machine set cookies for all its ports.
    value = cookie_parser(cookie).get(services.cookie)
    return None if value is None else services.sessions.session_of(value, mono_s())


def session_cookie(services: ConsoleServices, scope: Scope, session: BrowserSession | None) -> str:
    """Return the Set-Cookie field of a session, or one that deletes the cookie if it is None."""
    value = "" if session is None else services.sessions.cookie(session)
    parts = [f"{services.cookie}={value}", "Path=/", "HttpOnly", "SameSite=Strict"]
    if session is None:
        parts.append("Max-Age=0")
    if services.is_https or scope["scheme"] == "https":  # of X-Forwarded-Proto, if a loopback proxy sends it
        parts.append("Secure")
    return "; ".join(parts)
