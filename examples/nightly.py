"""Fetch a list of URLs once a day: run `python -m examples.nightly urls.txt` from a crontab.

The batch ID is derived from the day and the name of the list. A second start on the same day, such as after a
crash, enqueues nothing twice and waits for the existing batch.
"""

import argparse
import asyncio
import datetime as dt
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from redis.exceptions import RedisError

from fetchfleet import BatchExistsError, Fetch, Fleet, FullError, Outcome, batch_id_for
from fetchfleet.jobs.contract.fetch_list import read_fetches

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379"
SUCCESS = {Outcome.STORED, Outcome.UNCHANGED}


def main(argv: Sequence[str]) -> int:
    """Fetch the list; return 0 if all succeeded, 1 if not or if Redis is unavailable, 2 for bad usage."""
    options = parse(argv)
    try:
        with options.list.open(encoding="utf-8") as lines:
            fetches = read_fetches(lines)
        return asyncio.run(fetch_all(options, fetches))
    except (FullError, RedisError) as error:
        return report_error(f"Redis is unavailable: {error}", 1)
    except BatchExistsError:
        return report_error(
            "the list has changed since the first run of the day; rename it to fetch it too", 2
        )
    except (OSError, ValueError) as error:
        return report_error(str(error), 2)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options; exit with 2 and an error message if they are invalid."""
    parser = argparse.ArgumentParser(prog="nightly", description="Fetch a list of URLs once a day.")
    parser.add_argument("list", type=Path, help="a file with one URL or JSON fetch a line")
    parser.add_argument(
        "--redis",
        default=os.environ.get("FETCHFLEET_REDIS_URL", DEFAULT_REDIS_URL),
        help="the fleet's Redis (FETCHFLEET_REDIS_URL)",
    )
    parser.add_argument(
        "--redis-patience",
        type=float,
        default=60,
        help="seconds to wait while Redis is unavailable; default: 60",
    )
    parser.add_argument(
        "--date",
        type=dt.date.fromisoformat,
        default=dt.datetime.now().astimezone().date(),
        help="the day of this run, YYYY-MM-DD; default: today",
    )
    return parser.parse_args(argv)


async def fetch_all(options: argparse.Namespace, fetches: list[Fetch]) -> int:
    """Enqueue the list unless it already is; print each failure on standard error, then a summary."""
    run = f"{options.date} {options.list.name}"
    async with Fleet(options.redis, redis_patience_s=options.redis_patience) as fleet:
        batch = await fleet.submit(fetches, batch_id=batch_id_for(run))
        async for result in batch.results():
            if result.outcome not in SUCCESS:
                report_error(f"{result.outcome} {result.url} {result.reason} status={result.status}", 1)
        counts = await batch.counts()
    succeeded = counts.stored + counts.unchanged
    print(f"{run}: {succeeded} of {counts.total} succeeded, {counts.bytes} bytes, batch {batch.id}")
    return 0 if succeeded == counts.total else 1


def report_error(message: str, code: int) -> int:
    """Print the message on standard error; return the exit code."""
    print(f"nightly: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
