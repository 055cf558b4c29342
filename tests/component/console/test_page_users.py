"""The pages as each Redis user: the operator may open all of them, and an error names it to others."""

from collections.abc import Iterator

import pytest

from fetchfleet import Fleet
from tests.support import guarded_redis
from tests.support.console import console
from tests.support.guarded_redis import GuardedRedis
from tests.support.lanes import BATCH_ID, LANE, url

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

BATCH = f"/batches/{BATCH_ID}"
PAGES = [
    "/",
    "/hosts",
    f"/hosts/{LANE}",
    "/hosts/default",
    "/batches",
    BATCH,
    f"{BATCH}/results",
    f"{BATCH}/cancel",
]
PAGES += ["/dead", "/dead/retry", "/dead/purge", "/events?wait=1"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedRedis]:
    """A Redis with the users of a fleet."""
    with guarded_redis.serve_guarded() as server:
        yield server


async def test_the_operator_may_open_every_page(guarded: GuardedRedis) -> None:
    """No page is denied, and Redis logs no refusal."""
    async with Fleet(guarded.url("operator")) as fleet:
        await fleet.submit([url("/0")], batch_id=BATCH_ID)
    async with console(guarded.url("operator")) as client:
        found = {path: (await client.get(path)).status_code for path in PAGES}

    assert dict.fromkeys(PAGES, 200) == found
    assert set() == {refusal for refusal in guarded.refused() if refusal.user == "operator"}


async def test_a_user_without_the_rights_gets_a_page_with_the_user_that_has_them(
    guarded: GuardedRedis,
) -> None:
    """The password is not shown."""
    async with console(guarded.url("reader")) as client:
        page = await client.get("/")

    assert (503, True) == (page.status_code, "The user operator of ops/users.acl may" in page.text)
    assert guarded.password("reader") not in page.text
