"""The ASGI app of `fetchfleet serve`: its routes behind the guard."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fetchfleet.worker.console import forms, problems
from fetchfleet.worker.console.access.guard import Guard, is_for_programs
from fetchfleet.worker.console.api import routes
from fetchfleet.worker.console.html import STATIC, problem_page
from fetchfleet.worker.console.pages.routes import ROUTES as PAGES
from fetchfleet.worker.console.services import ConsoleServices, services_of


async def healthz(_: Request) -> Response:
    """Tell that the server runs, whether or not Redis answers."""
    return PlainTextResponse("ok\n")


async def metrics(request: Request) -> Response:
    """Return the metrics of the fleet for Prometheus."""
    return Response(await services_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def console_app(services: ConsoleServices) -> Starlette:
    """Return the app."""
    app = Starlette(
        routes=[
            Route("/healthz", healthz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            *forms.ROUTES,
            *PAGES,
            *routes.ROUTES,
        ],
        middleware=[Middleware(Guard, services=services)],
        exception_handlers=problems.handlers(problem_page, is_for_programs),
    )
    app.state.services = services
    return app
