"""The reply to INFO of a Redis that a worker cannot use."""

from typing import Any

import pytest

from fetchfleet.worker.errors import BAD_USE, FAILED
from fetchfleet.worker.redis_support.startup import refusal_of

STANDALONE = {"redis_version": "7.2.4", "cluster_enabled": 0, "role": "master"}


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        ({"redis_mode": "cluster"}, BAD_USE, "cluster mode"),
        ({"cluster_enabled": 1}, BAD_USE, "cluster mode"),
        ({"redis_mode": "sentinel"}, BAD_USE, "URL of a Sentinel"),
        ({"server_mode": "sentinel"}, BAD_USE, "URL of a Sentinel"),
        ({"redis_version": "6.0.16"}, BAD_USE, "Redis 6.0.16 is too old: 6.2"),
        ({"redis_version": "2.8.17"}, BAD_USE, "Redis 2.8.17 is too old: 6.2"),
        (
            {"role": "slave", "slave_read_only": 1, "master_host": "h", "master_port": 6379},
            FAILED,
            "read-only replica: give the URL of the primary, h:6379",
        ),
        ({"maxmemory_policy": "allkeys-lru"}, FAILED, "maxmemory-policy allkeys-lru"),
    ],
)
def test_an_unusable_redis_is_refused(found: dict[str, Any], code: int, message: str) -> None:
    """The exit code is that of bad use if only another Redis helps; otherwise a restart may help."""
    refusal = refusal_of(STANDALONE | found)

    assert refusal is not None
    assert message in str(refusal)
    assert code == refusal.exit_code


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"redis_mode": "standalone"},
        {"server_mode": "standalone"},
        {"redis_version": "6.2.14"},
        {"redis_version": "10.0.0"},
        {"redis_version": "255.255.255", "valkey_version": "9.0.0"},
        {"redis_version": "unstable"},
        {"role": "slave", "slave_read_only": 0},
        {"maxmemory_policy": "noeviction"},
    ],
)
def test_any_other_redis_is_used(found: dict[str, Any]) -> None:
    """A missing or odd field of INFO is not a reason to refuse."""
    assert refusal_of(STANDALONE | found) is None
    assert refusal_of(found) is None
