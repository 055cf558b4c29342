"""The API against its OpenAPI document: generated requests, and responses that conform to it."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from redis.asyncio import Redis
from requests import Session
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fetchfleet import Fleet, Outcome, Result
from fetchfleet.jobs.contract.entry import parse_entry
from fetchfleet.worker.console.api.routes import OPERATIONS
from fetchfleet.worker.lanes import settler
from tests.support.console import served, url_in
from tests.support.lanes import BATCH_ID, LANE, LaneHold, stored, url

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 8
KNOWN = {"batch": BATCH_ID, "host": LANE}
"""The batch and the host in Redis, which valid requests name."""


@schemathesis.serializer("application/x-ndjson")
def write_lines(_: Any, value: Any) -> bytes:
    """Return the value as a line."""
    return json.dumps(value).encode() + b"\n"


@pytest.fixture
async def schema(redis_url: str, redis: Redis, fleet: Fleet, tmp_path: Path) -> AsyncIterator[Any]:
    """The schema of a running server, whose fleet has a batch that ended with a dead letter."""
    await fleet.submit([url("/0"), url("/1")], batch_id=BATCH_ID)
    hold = await LaneHold.begin(redis)
    first, second = (await hold.claim(2)).serialized
    fetch_id = parse_entry(first).id
    failed = Result(id=fetch_id, url=url("/0"), outcome=Outcome.FAILED, worker="test", note="gone")
    await hold.settle(settler.failed(failed), settler.finished(failed, lambda: None), stored(second))
    await hold.release()
    log = tmp_path / "serve.log"
    with served(log, "--redis", redis_url):
        yield schemathesis.openapi.from_url(f"{await url_in(log)}/openapi.json")
    assert "console.bug" not in log.read_text()


@pytest.fixture
def session() -> Iterator[Session]:
    """A session, which keeps its connection."""
    with Session() as session:
        yield session


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_generated_requests_get_responses_that_conform(
    schema: Any, mode: Any, session: Session
) -> None:
    """No request, valid or not, gets a server error or an undocumented response."""
    tried = []
    is_valid = mode is GenerationMode.POSITIVE
    for found in schema.get_all_operations():
        operation = found.ok()
        tried.append((operation.method.upper(), operation.path))
        names = re.findall(r"{(\w+)}", operation.path)
        known = {name: KNOWN[name] for name in names if name in KNOWN} if is_valid else {}
        cases = operation.as_strategy(generation_mode=mode, path_parameters=known or None)

        @seed(1)
        @settings(
            max_examples=EXAMPLES if is_valid else EXAMPLES // 2,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(case=cases)
        def check(case: Any) -> None:
            case.call_and_validate(session=session, checks=CHECKS)

        with suppress(*(() if is_valid else (Unsatisfiable,))):  # an operation without parameters or body
            check()

    assert {(of.method, of.path) for of in OPERATIONS} == {*tried}
