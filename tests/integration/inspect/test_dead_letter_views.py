"""The dead letters of a fleet, newest first."""

import pytest
from redis.asyncio import Redis

from fetchfleet import DeadLetterFilter, Fetch
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.entry import Entry, serialize_entry
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.worker.inspect.views import dead_letters as views
from fetchfleet.worker.inspect.views.dead_letters import count_dead_letters, dead_letter, dead_letters
from tests.support.lanes import BATCH_ID, NEVER_MS, ask

SECRET = "https://a.example/{}?token=hunter2"


async def bury(redis: Redis, number: int) -> None:
    """Write dead letters of a batch, every third one for another host and with another reason."""
    for place in range(number):
        host, reason = ("b.example", "tls") if place % 3 == 0 else ("a.example", "connect")
        fetch = Fetch(url=SECRET.format(place), headers={"Authorization": "Bearer hunter2"})
        entry = Entry(id=fetch_id(BATCH_ID, place), deadline_ms=NEVER_MS, fetch=fetch)
        about = ["door", "lane", "reason", reason, "note", "token=hunter2", "lane", host, "id", entry.id]
        await ask(redis, "XADD", keys.DEAD, f"{place + 1}-0", *about, "element", serialize_entry(entry))


async def test_letters_are_paged_newest_first_without_secrets(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter applies to every page."""
    monkeypatch.setattr(views, "READ_AT_ONCE", 2)
    await bury(redis, 9)
    first = await dead_letters(redis, limit=4)
    last = await dead_letters(redis, before=first.next, limit=6)
    of_b = await dead_letters(redis, DeadLetterFilter(host="b.example"), limit=2)
    rest = await dead_letters(redis, DeadLetterFilter(host="b.example"), before=of_b.next)

    assert ["9-0", "8-0", "7-0", "6-0"] == [letter.position for letter in first.letters]
    assert ["5-0", "4-0", "3-0", "2-0", "1-0"] == [letter.position for letter in last.letters]
    assert (None, 9) == (last.next, last.in_all)
    assert ["7-0", "4-0"] == [letter.position for letter in of_b.letters]
    assert ["1-0"] == [letter.position for letter in rest.letters]
    assert [] == (await dead_letters(redis, before="0-0")).letters
    newest = first.letters[0]
    assert (9, "a.example", BATCH_ID, True) == (newest.at_ms, newest.host, newest.batch, newest.retriable)
    assert (newest.url or "").startswith("https://a.example/8")
    assert "hunter2" not in f"{first}{last}"


async def test_the_number_of_matches_is_bounded_and_says_so(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reasons and hosts, for an action on many letters."""
    await bury(redis, 9)
    await redis.xadd(keys.DEAD, {"door": "inbox", "reason": "invalid", "note": "x", "element": "{"})
    every = await count_dead_letters(redis)
    some = await count_dead_letters(redis, DeadLetterFilter(batch=BATCH_ID, reason="tls"))
    monkeypatch.setattr(views, "MAX_READ", 4)
    cut = await count_dead_letters(redis)
    page = await dead_letters(redis, DeadLetterFilter(reason="none of them"))

    assert (10, True, 9) == (every.count, every.exact, every.retriable)
    assert {"connect": 6, "tls": 3, "invalid": 1} == every.reasons
    assert {"a.example": 6, "b.example": 3} == every.hosts
    assert (3, {"b.example": 3}) == (some.count, some.hosts)
    assert (4, False) == (cut.count, cut.exact)
    assert ([], "7-0") == (page.letters, page.next)


async def test_a_read_of_letters_ends_in_time(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next page continues there, and a count is a minimum."""
    await bury(redis, 9)
    monkeypatch.setattr(views, "MAX_READ_S", -1)
    cut = await count_dead_letters(redis)
    page = await dead_letters(redis, DeadLetterFilter(reason="none of them"))

    assert (1, False) == (cut.count, cut.exact)
    assert ([], "9-0") == (page.letters, page.next)


async def test_one_letter_is_shown_with_its_fetch_and_without_secrets(redis: Redis) -> None:
    """Other text, and an unknown position, have no letter."""
    await bury(redis, 1)
    await redis.xadd(keys.DEAD, {b"element": b"\xff\x00", b"odd": b"\xff"}, id="7-7")
    found = await dead_letter(redis, "1-0")
    foreign = await dead_letter(redis, "7-7")

    assert found is not None
    assert found.fetch is not None
    assert "a.example" in found.fetch["url"]
    assert "hunter2" not in repr(found)
    assert foreign is not None
    assert (None, False, "") == (foreign.fetch, foreign.letter.retriable, foreign.letter.reason)
    for position in ("2-0", "0-0", "0", "-", "+", "(1-0", "1-0\n", "x", "9" * 30, "\u0661-0"):
        assert await dead_letter(redis, position) is None
    with pytest.raises(ValueError, match="is not a position"):
        await dead_letters(redis, before="+")
