"""Pages: the templates, their rendering, and the notices that one page leaves for the next."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fetchfleet import __version__
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.console.pages import formats
from fetchfleet.worker.console.problems import Problem
from fetchfleet.worker.console.services import services_of

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
LIVE = "live_"
"""The prefix of the blocks that a live page updates."""

SECTIONS = (
    ("fleet", "/", "Fleet"),
    ("hosts", "/hosts", "Hosts"),
    ("batches", "/batches", "Batches"),
    ("dead", "/dead", "Dead letters"),
    ("events", "/events", "Events"),
)
"""The entries of the menu: name, address and label."""

NOTICE_S = 60
MAX_NOTICE_CHARS = 1000


class Notice(NamedTuple):
    """The effect of an action, for the top of the next page."""

    tone: str
    """done or failed."""
    text: str


class SafeLines(str):
    """A text in lines, whose control characters are already visible."""

    __slots__ = ()


def _visible(value: object) -> object:
    """Make control characters of a text visible. Markup is made by templates, of visible values."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup | SafeLines) else value


templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_visible,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""The templates. Every value is escaped, and its control characters are made visible."""
templates.filters.update(formats.FILTERS)
templates.globals["state_look"] = formats.state_look
templates.globals["ui"] = templates.get_template("macros.html").module


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Render a page. Its template has the values, and those of `_common`."""
    notice, cookie = None, _notice_cookie(request)
    if cookie in request.cookies:
        notice = _decode_notice(request.cookies[cookie])
    html = templates.get_template(template).render({**_common(request), "notice": notice, **values})
    response = HTMLResponse(html, status)
    if cookie in request.cookies:
        response.delete_cookie(cookie, httponly=True, samesite="strict")
    response.headers["Vary"] = "Accept"  # a live page has a stream of events at the same address
    return response


def render(template: str, **values: Any) -> str:
    """Render a template that needs nothing of the request."""
    return templates.get_template(template).render(values)


def fragments(request: Request, template: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Render the fragments of a live page, by the ID of their elements."""
    of = templates.get_template(template)
    context = of.new_context({**_common(request), **values})
    found = {
        name.replace("_", "-"): "".join(block(context))
        for name, block in of.blocks.items()
        if name.startswith(LIVE)
    }
    return {**found, "live-moment": str(formats.moment(values["now_ms"]))}


def redirect_with(request: Request, path: str, notice: Notice) -> Response:
    """Return a redirect to a page that shows the notice."""
    text = shown(notice.text)
    text = text if len(text) <= MAX_NOTICE_CHARS else f"{text[:MAX_NOTICE_CHARS]} …"
    value = urlsafe_b64encode(msgspec.json.encode((notice.tone, text))).decode()
    response = RedirectResponse(path, 303)
    response.set_cookie(
        _notice_cookie(request),
        value,
        max_age=NOTICE_S,
        httponly=True,
        samesite="strict",
        secure=services_of(request).is_https or request.url.scheme == "https",
    )
    return response


def problem_page(request: Request, problem: Problem) -> Response:
    """Render an error."""
    return page(request, "problem.html", problem.status, problem=problem, section="")


def _common(request: Request) -> dict[str, Any]:
    """Return the values that every page has.

    form_token: the value of the hidden field of every form, empty if no form may be sent.
    """
    services = services_of(request)
    caller = getattr(request.state, "caller", None)
    session = caller.session if caller else None
    return {
        "form_token": services.sessions.form_token(session) if session else "",
        "read_only": services.read_only,
        "signed_in": services.token is not None and session is not None,
        "version": __version__,
        "path": request.url.path,
        "sections": SECTIONS,
    }


def _notice_cookie(request: Request) -> str:
    return f"{services_of(request).cookie}_notice"


def _decode_notice(value: str) -> Notice | None:
    """Return the notice in a cookie; None if it is not one of this server."""
    try:
        tone, text = msgspec.json.decode(urlsafe_b64decode(value), type=tuple[str, str])
    except (ValueError, RecursionError):  # msgspec's and binascii's errors are ValueErrors
        return None
    return Notice("done" if tone == "done" else "failed", text[: 2 * MAX_NOTICE_CHARS])
