"""A worker that connects as a Redis user without a worker's permissions."""

import pytest

from tests.support import guarded_redis
from tests.support.workers import fetchfleet

WHY_NOT = guarded_redis.acl_skip_reason()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


def test_a_denied_worker_exits_and_names_the_user_to_use() -> None:
    """The message has its own user too, without the password."""
    with guarded_redis.serve_guarded() as guarded:
        ended = fetchfleet("worker", FETCHFLEET_REDIS_URL=guarded.url("producer"))

    assert (1, "") == (ended.returncode, ended.stdout)
    assert ended.stderr.startswith("worker: the Redis user producer "), ended.stderr
    assert "The user worker of ops/users.acl may" in ended.stderr
    assert guarded.password("producer") not in ended.stderr
