"""The API as each Redis user: the operator may do everything, and an error names it to others."""

from collections.abc import Iterator

import pytest

from fetchfleet.worker.console.api.routes import OPERATIONS
from tests.support import guarded_redis
from tests.support.console import console
from tests.support.guarded_redis import GuardedRedis
from tests.support.lanes import BATCH_ID, LANE, url

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

BODIES = {
    "/v1/batches": {"fetches": [url("/0"), {"url": url("/1"), "key": "k"}], "batch": BATCH_ID},
    "/v1/hosts/{host}/policy": {"attempts": 2},
    "/v1/dead/retry": {"all": True},
    "/v1/dead/purge": {"all": True},
}
UNKNOWN = "/v1/dead/{position}"
"""The operation on something that is not in Redis."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedRedis]:
    """A Redis with the users of a fleet."""
    with guarded_redis.serve_guarded() as server:
        yield server


async def statuses(guarded: GuardedRedis, user: str) -> dict[str, tuple[int, str]]:
    """Return the status and the text of the response of each operation, as a Redis user."""
    found = {}
    async with console(guarded.url(user)) as client:
        for of in OPERATIONS:
            path = of.path.format(batch=BATCH_ID, host=LANE, position="1-1")
            body = BODIES.get(of.path) if of.method != "GET" else None
            response = await client.request(of.method, path, json=body)
            found[f"{of.method} {of.path}"] = (response.status_code, response.text)
    return found


async def test_the_operator_may_do_everything(guarded: GuardedRedis) -> None:
    """No operation is denied, and Redis logs no refusal."""
    found = await statuses(guarded, "operator")
    wanted = {f"{of.method} {of.path}": 404 if of.path == UNKNOWN else of.status for of in OPERATIONS}

    assert wanted == {name: status for name, (status, _) in found.items()}
    assert set() == {refusal for refusal in guarded.refused() if refusal.user == "operator"}


async def test_a_user_without_the_rights_gets_the_name_of_the_user_that_has_them(
    guarded: GuardedRedis,
) -> None:
    """Each operation gets 503. The password is not shown."""
    found = await statuses(guarded, "reader")

    assert {503} == {status for status, _ in found.values()}
    assert all("The user operator of ops/users.acl may" in text for _, text in found.values())
    assert guarded.password("reader") not in str(found)
