"""A worker as a Redis user that may not run one."""

import pytest

from tests.support import guarded_redis
from tests.support.workers import fetchfleet

WHY_NOT = guarded_redis.why_unguarded()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


def test_a_worker_that_redis_refuses_ends_and_names_the_user_that_may() -> None:
    """Its own user is named as well, without the password."""
    with guarded_redis.serve_guarded() as guarded:
        ended = fetchfleet("worker", FETCHFLEET_REDIS_URL=guarded.url("producer"))

    assert (1, "") == (ended.returncode, ended.stdout)
    assert ended.stderr.startswith("worker: the Redis user producer "), ended.stderr
    assert "The user worker of ops/users.acl may" in ended.stderr
    assert guarded.password("producer") not in ended.stderr
