"""Pages: the templates, and their rendering."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fetchfleet import __version__
from fetchfleet.jobs.contract.safe_text import shown
from fetchfleet.worker.console.problems import Problem
from fetchfleet.worker.console.services import services_of

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""The templates. Every value is escaped. The filter `shown` makes control characters of a text visible."""
templates.filters["shown"] = lambda value: shown(str(value))


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Render a page. Each has `form_token`, `read_only`, `signed_in` and `version` besides the values.

    form_token: the value of the hidden field of every form, empty if no form may be sent.
    """
    services = services_of(request)
    caller = getattr(request.state, "caller", None)
    session = caller.session if caller else None
    common = {
        "form_token": services.sessions.form_token(session) if session else "",
        "read_only": services.read_only,
        "signed_in": services.token is not None and session is not None,
        "version": __version__,
        "path": request.url.path,
    }
    return HTMLResponse(templates.get_template(template).render({**common, **values}), status)


def problem_page(request: Request, problem: Problem) -> Response:
    """Render an error."""
    return page(request, "problem.html", problem.status, problem=problem)
