"""A list of URLs, fetched once a day: `python -m examples.nightly urls.txt` out of a crontab.

The batch's id is made of the day and the list's name. So a second start on the same day, by a person
or after a crash, enqueues nothing twice: it waits for the batch that is there.
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
WELL = {Outcome.STORED, Outcome.UNCHANGED}


def main(argv: Sequence[str]) -> int:
    """Fetch the list; 0 when all of it came, 1 when not or when Redis is away, 2 for bad use."""
    options = parse(argv)
    try:
        with options.list.open(encoding="utf-8") as lines:
            fetches = read_fetches(lines)
        return asyncio.run(fetch_all(options, fetches))
    except (FullError, RedisError) as error:
        return complain(f"Redis takes nothing now: {error}", 1)
    except BatchExistsError:
        return complain("today's list was another; rename the list to fetch it as well", 2)
    except (OSError, ValueError) as error:
        return complain(str(error), 2)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; ends the process with 2 and a sentence when they are bad."""
    parser = argparse.ArgumentParser(prog="nightly", description="Fetch a list of URLs once a day.")
    parser.add_argument("list", type=Path, help="a URL or a JSON fetch a line")
    parser.add_argument(
        "--redis",
        default=os.environ.get("FETCHFLEET_REDIS_URL", DEFAULT_REDIS_URL),
        help="the fleet's Redis (FETCHFLEET_REDIS_URL)",
    )
    parser.add_argument(
        "--date",
        type=dt.date.fromisoformat,
        default=dt.datetime.now().astimezone().date(),
        help="the day this run is for, as YYYY-MM-DD; today unless given",
    )
    return parser.parse_args(argv)


async def fetch_all(options: argparse.Namespace, fetches: list[Fetch]) -> int:
    """Enqueue what is not there yet, name each failure on standard error, sum up in one line."""
    run = f"{options.date} {options.list.name}"
    async with Fleet(options.redis) as fleet:
        batch = await fleet.submit(fetches, batch_id=batch_id_for(run))
        async for result in batch.results():
            if result.outcome not in WELL:
                complain(f"{result.outcome} {result.url} {result.reason} status={result.status}", 1)
        counts = await batch.counts()
    came = counts.stored + counts.unchanged
    print(f"{run}: {came} of {counts.total} came, {counts.bytes} bytes, batch {batch.id}")
    return 0 if came == counts.total else 1


def complain(sentence: str, code: int) -> int:
    """The code, once the sentence is on standard error."""
    print(f"nightly: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
