"""The scripts by which an operator changes how a running fleet treats its hosts.

Each function is the only caller of the Lua file of the same name in jobs/lua, whose header documents KEYS and
ARGV in the order used here.
"""

from collections.abc import Mapping

from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.scripts import runner
from fetchfleet.jobs.scripts.runner import Arg


async def change_policy(redis: Redis, *, version: bytes, fields: Mapping[str, bytes]) -> bool:
    """Write fields of the policy tables, empty ones removed; False if the version is another one by now."""
    args: list[Arg] = [version]
    for field, value in fields.items():
        args += [field, value]
    return bool(await runner.run(redis, "change_policy", [keys.POLICY, keys.POLICY_VERSION], args))
