"""All operations of the API, and the routes that serve them."""

from functools import cache

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchfleet.worker.console.api import batches, dead, fleet, hosts, submit
from fetchfleet.worker.console.api.openapi import document

OPERATIONS = [
    *submit.OPERATIONS,
    *batches.OPERATIONS,
    *hosts.OPERATIONS,
    *dead.OPERATIONS,
    *fleet.OPERATIONS,
]


@cache
def _document() -> bytes:
    return document(OPERATIONS)


async def get_openapi(_: Request) -> Response:
    """Return the OpenAPI document."""
    return Response(_document(), media_type="application/json")


ROUTES = [
    *(operation.route for operation in OPERATIONS),
    Route("/openapi.json", get_openapi, methods=["GET"]),
]
