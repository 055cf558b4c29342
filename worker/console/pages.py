"""The pages of the console. Each route reads views of worker/inspect and renders a template."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchfleet.worker.console.html import page


async def front(request: Request) -> Response:
    """Show the fleet."""
    return page(request, "front.html")


ROUTES = [Route("/", front, methods=["GET"])]
