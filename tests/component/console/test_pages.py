"""The pages of the console and their forms, against a fleet without workers."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from fetchfleet import Fleet, Outcome, Reason, Result
from fetchfleet.jobs import keys
from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.ids import fetch_id
from tests.support.console import TOKEN, console
from tests.support.lanes import BATCH_ID, LANE, fail_batch, url
from tests.support.log_lines import capture_logs

HOSTILE = "<script>alert('x')</script>\u202e\x1b[2J"
PAGES = [
    "/",
    "/hosts",
    f"/hosts/{LANE}",
    "/hosts/*.example",
    "/hosts/default",
    "/batches",
    "/dead",
    "/events",
]
VOID = {"meta", "link", "input", "br", "path", "rect", "circle", "polyline", "polygon"}


class Outline(HTMLParser):
    """The elements of a page; fails for one that is not closed, or that a policy of the server forbids."""

    def __init__(self, page: httpx.Response) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.text)
        self.close()
        assert [] == self.open
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element."""
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on") or name == "style"]
        assert tag not in {"style", "iframe", "object"}
        if tag == "script":
            assert given["src"] == "/static/console.js"
        self.tags.append((tag, given))
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element without content."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        assert self.open.pop() == tag

    def count(self, tag: str, **wanted: str) -> int:
        """Return the number of elements with these attributes."""
        return sum(of == tag and wanted.items() <= given.items() for of, given in self.tags)


async def press(client: httpx.AsyncClient, page: str, path: str, **fields: str) -> httpx.Response:
    """Send a form of a page, and follow the redirect."""
    token = re.search(r'name="form_token" value="([0-9a-f]{64})"', (await client.get(page)).text)
    assert token, f"{page} has no form"
    return await client.post(path, data={"form_token": token[1], **fields}, follow_redirects=True)


def notice(page: httpx.Response) -> str:
    """Return the notice at the top of a page."""
    found = re.search(
        r'<div class="notice (?:done|failed)" role="status">.*?<p>(.*?)</p>', page.text, re.DOTALL
    )
    assert found, page.text
    return found[1]


@pytest.fixture
async def reader(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with --read-only."""
    async with console(redis_url, read_only=True) as client:
        yield client


@pytest.mark.parametrize("path", PAGES)
async def test_pages_of_an_empty_fleet_are_complete(local: httpx.AsyncClient, path: str) -> None:
    """Each is well-formed, has one heading, a main landmark and a current entry in the menu."""
    page = await local.get(path)
    outline = Outline(page)

    assert (200, 1, 1) == (page.status_code, outline.count("h1"), outline.count("main"))
    assert 1 == outline.count("a", **{"aria-current": "page"})
    assert outline.count("th") == outline.count("th", scope="col") + outline.count("th", scope="row")


async def test_the_front_page_says_that_no_worker_runs(local: httpx.AsyncClient, fleet: Fleet) -> None:
    """It names the number of fetches that wait, and links to the hosts."""
    await fleet.submit([url(f"/{place}") for place in range(3)])
    page = await local.get("/")

    assert "No worker is running" in page.text
    assert "3 fetches are to do" in page.text
    assert f'href="/hosts/{LANE}"' in page.text


async def test_a_host_is_paused_and_resumed_by_its_page(local: httpx.AsyncClient, fleet: Fleet) -> None:
    """The page says so, and its button changes."""
    await fleet.submit([url("/0")])
    paused = await press(local, f"/hosts/{LANE}", f"/hosts/{LANE}", action="pause")
    resumed = await press(local, f"/hosts/{LANE}", f"/hosts/{LANE}", action="resume")

    assert f"{LANE} is paused. Fetches in flight finish." == notice(paused)
    assert 'name="action" value="resume"' in paused.text
    assert "by an operator since" in paused.text
    assert f"{LANE} is resumed." == notice(resumed)
    assert 'name="action" value="pause"' in resumed.text


async def test_a_notice_is_shown_once(local: httpx.AsyncClient) -> None:
    """A reload does not repeat it."""
    await press(local, f"/hosts/{LANE}", f"/hosts/{LANE}", action="reset")

    assert 'class="notice' not in (await local.get("/")).text


async def test_a_host_below_a_wider_pause_is_resumed_as_an_exception(local: httpx.AsyncClient) -> None:
    """Its page offers that in place of a pause."""
    await press(local, "/hosts/*.example", "/hosts/*.example", action="pause")
    page = await local.get(f"/hosts/{LANE}")
    resumed = await press(local, f"/hosts/{LANE}", f"/hosts/{LANE}", action="except")
    await press(local, "/hosts/*.example", "/hosts/*.example", action="resume")

    assert "Resume this host only" in page.text
    assert f"{LANE} is resumed, as an exception from wider pauses." == notice(resumed)


async def test_limits_are_set_and_unset(local: httpx.AsyncClient) -> None:
    """A value that the policy refuses changes nothing, and the page says why."""
    path = f"/hosts/{LANE}"
    done = await press(local, path, path, action="set", key="concurrency", value="2")
    refused = await press(local, path, path, action="set", key="concurrency", value="0")
    unset = await press(local, path, path, action="unset", key="concurrency")

    assert f"concurrency of {LANE} is 2. Workers apply it within about a second." == notice(done)
    assert "set at run time" in done.text
    assert "must be between 1 and 1000, got 0" in notice(refused)
    assert f"concurrency of {LANE} is as in the policy file again." == notice(unset)
    assert "set at run time" not in unset.text


async def test_an_action_that_does_not_exist_is_refused(local: httpx.AsyncClient) -> None:
    """The form may come from another version of the page."""
    assert 422 == (await press(local, f"/hosts/{LANE}", f"/hosts/{LANE}", action="explode")).status_code


async def test_a_host_is_found_in_any_form_of_its_name(local: httpx.AsyncClient) -> None:
    """As the commands accept it."""
    found = await local.get("/hosts/find", params={"host": f"https://{LANE.upper()}:8443/a"})

    assert (303, f"/hosts/{LANE}") == (found.status_code, found.headers["location"])
    assert 404 == (await local.get("/hosts/find", params={"host": "a b"})).status_code


async def test_a_batch_is_cancelled_after_a_confirmation(local: httpx.AsyncClient, fleet: Fleet) -> None:
    """The confirmation has the number of fetches without a result."""
    batch = await fleet.submit([url(f"/{place}") for place in range(3)])
    asked = await local.get(f"/batches/{batch.id}/cancel")
    done = await press(local, f"/batches/{batch.id}/cancel", f"/batches/{batch.id}/cancel")

    assert "3 of its 3 fetches have no result yet." in asked.text
    assert "Cancel 3 fetches" in asked.text
    assert f"Batch {batch.id} is cancelled. 3 fetches end within about a second." == notice(done)
    assert "cancelling" in done.text


async def test_a_batch_shows_failures_and_results(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Without secrets, also in the download."""
    await fail_batch(fleet, redis, 3)
    batch = await local.get(f"/batches/{BATCH_ID}")
    failed = await local.get(f"/batches/{BATCH_ID}/results", params={"reason": "http_status"})
    others = await local.get(f"/batches/{BATCH_ID}/results", params={"outcome": "stored"})
    download = await local.get(f"/batches/{BATCH_ID}/results.jsonl", params={"outcome": "failed"})

    assert "http_status" in batch.text
    assert "3 shown of 3 read" in failed.text
    assert f"note of http://{LANE}/0?token=***" in failed.text
    assert "None of these results matches." in others.text
    lines = [msgspec.json.decode(line) for line in download.content.splitlines()]
    assert ["failed"] * 3 == [line["outcome"] for line in lines]
    assert f'attachment; filename="{BATCH_ID}-failed.jsonl"' == download.headers["content-disposition"]
    assert "secret" not in batch.text + failed.text + download.text


async def test_a_batch_shows_a_reason_without_a_note(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """A response with a failing status has none."""
    batch = await fleet.submit([url("/0")])
    refused = Result(
        id=fetch_id(batch.id, 0), url="", outcome=Outcome.FAILED, reason=Reason.HTTP_STATUS, worker="w"
    )
    await redis.xadd(keys.results(batch.id), {"r": encode(refused)})
    await redis.hset(keys.batch(batch.id), mapping={"done": 1, "failed": 1})  # type: ignore[misc]
    page = await local.get(f"/batches/{batch.id}")
    await redis.delete(keys.results(batch.id))

    assert 200 == page.status_code
    assert "reason=http_status" in page.text


async def test_results_are_paged(local: httpx.AsyncClient, fleet: Fleet, redis: Redis) -> None:
    """Each result is on one page."""
    await fail_batch(fleet, redis, 120)
    path, found, pages = f"/batches/{BATCH_ID}/results", list[str](), 0
    while path:
        page = await local.get(path)
        found += re.findall(r'<th scope="row" title="(\S+)', page.text)
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        path, pages = following[1].replace("&amp;", "&") if following else "", pages + 1

    assert (3, 120, 120) == (pages, len(found), len(set(found)))


@pytest.mark.parametrize("path", [f"/batches/{'0' * 16}", "/batches/x", f"/batches/{'0' * 16}/results"])
async def test_a_batch_that_does_not_exist_is_a_404(local: httpx.AsyncClient, path: str) -> None:
    """The page has the menu, so that a reader can go on."""
    page = await local.get(path)

    assert (404, 1) == (page.status_code, Outline(page).count("nav", **{"aria-label": "Main"}))


@pytest.mark.parametrize(("action", "left"), [("retry", 0), ("purge", 0)])
async def test_dead_letters_are_changed_after_a_confirmation_with_their_number(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis, action: str, left: int
) -> None:
    """The selection of the list is kept. The notice has the number that was changed."""
    await fail_batch(fleet, redis, 3)
    asked = await local.get(f"/dead/{action}", params={"host": LANE, "reason": "http_status"})
    none = await local.get(f"/dead/{action}", params={"host": "other.example"})
    done = await press(local, f"/dead/{action}", f"/dead/{action}", host=LANE, reason="http_status")

    assert re.search(r"(Retry|Delete) 3 dead letters\?", asked.text)
    assert f'name="host" value="{LANE}"' in asked.text
    assert "There is nothing to do." in none.text
    assert "primary" not in none.text
    assert re.match(
        r"3 fetches enqueued again, as batch [0-9a-f]{16}\.|3 dead letters deleted\.", notice(done)
    )
    assert left == await redis.xlen(keys.DEAD)


async def test_every_dead_letter_is_changed_only_by_a_form_that_says_so(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """A form that has lost its filter changes nothing."""
    await fail_batch(fleet, redis, 2)
    refused = await press(local, "/dead/purge", "/dead/purge")
    left = await redis.xlen(keys.DEAD)
    asked = await local.get("/dead/purge")
    done = await press(local, "/dead/purge", "/dead/purge", all="yes")

    assert (422, 2) == (refused.status_code, left)
    assert 'name="all" value="yes"' in asked.text
    assert "2 dead letters deleted." == notice(done)


async def test_one_dead_letter_is_shown_without_secrets_and_retried(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """The next page is its new batch."""
    await fail_batch(fleet, redis, 1)
    [letter] = [letter async for letter in fleet.dead.iter()]
    position = letter.position
    shown = await local.get(f"/dead/{position}")
    retried = await press(local, f"/dead/{position}", f"/dead/{position}", action="retry")

    assert f"note of http://{LANE}/0?token=***" in shown.text
    assert "secret" not in shown.text
    assert "1 fetch enqueued again" in notice(retried)
    assert "/batches/" in str(retried.url)
    assert 404 == (await local.get(f"/dead/{position}")).status_code


async def test_hostile_values_in_redis_are_shown_as_text(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Markup is escaped, and control and bidirectional characters are made visible."""
    await fleet.submit([url("/0")])
    await redis.zadd(keys.ATTENTION, {HOSTILE: 1})
    await redis.hset(keys.lane(HOSTILE), mapping={"state": "scheduled", "due_ms": 1})  # type: ignore[misc]
    letter: Any = dict.fromkeys(("door", "reason", "note", "lane", "id", "element"), HOSTILE)
    position = (await redis.xadd(keys.DEAD, letter)).decode()
    pages = [await local.get(path) for path in ("/", "/hosts", "/dead", f"/dead/{position}", "/dead/purge")]

    for page in pages:
        Outline(page)
        assert 200 == page.status_code
        assert "<script>alert" not in page.text
        assert not set(page.text) & {"\u202e", "\x1b"}
    assert "&lt;script&gt;" in pages[1].text
    await redis.delete(keys.lane(HOSTILE))
    await redis.zrem(keys.ATTENTION, HOSTILE)


async def test_the_note_of_a_result_is_shown_as_text(
    local: httpx.AsyncClient, fleet: Fleet, redis: Redis
) -> None:
    """Escaped, and without the secrets of a forged one."""
    batch = await fleet.submit([url("/0")])
    note = f"{HOSTILE} at http://a.example/?token=secret"
    forged = Result(id=fetch_id(batch.id, 0), url="", outcome=Outcome.FAILED, worker="w", note=note)
    await redis.xadd(keys.results(batch.id), {"r": encode(forged)})
    page = await local.get(f"/batches/{batch.id}/results")
    await redis.delete(keys.results(batch.id))

    Outline(page)
    assert r"&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\u202e\u001b[2J at http://a.example" in page.text
    assert "<script>alert" not in page.text
    assert "secret" not in page.text


@pytest.mark.parametrize(
    "query",
    [
        "/hosts?state=%00&sort=x&offset=-1&q=%ff",
        "/batches?offset=99999999999",
        "/dead?before=x",
        "/events?level=x",
    ],
)
async def test_parameters_that_make_no_sense_are_left_out(local: httpx.AsyncClient, query: str) -> None:
    """The page is shown without them."""
    assert 200 == (await local.get(query)).status_code


async def test_a_forged_notice_is_not_shown(local: httpx.AsyncClient) -> None:
    """A cookie that is not a notice is dropped, and one with markup is escaped."""
    for value in ("x", "W10=", "W1siZG9uZSIsICJkb25lIl1d"):
        page = await local.get("/", headers={"Cookie": f"fetchfleet_8080_notice={value}"})

        assert 'class="notice' not in page.text
        assert "Max-Age=0" in page.headers["set-cookie"]


@pytest.mark.parametrize("path", [*PAGES, f"/batches/{BATCH_ID}"])
async def test_a_read_only_server_shows_no_action(
    reader: httpx.AsyncClient, fleet: Fleet, redis: Redis, path: str
) -> None:
    """It has no form that changes something, and refuses one that is sent."""
    await fail_batch(fleet, redis, 1)
    page = await reader.get(path)

    assert (200, 0, True) == (
        page.status_code,
        Outline(page).count("form", method="post"),
        "read-only" in page.text,
    )
    assert not re.search(r"/dead/(retry|purge)|/cancel", page.text)
    assert 403 == (await reader.post(f"/hosts/{LANE}", data={"action": "pause"})).status_code


async def test_actions_of_pages_are_logged_with_the_session(redis_url: str) -> None:
    """The session that pressed the button is named, not its cookie."""
    async with console(redis_url, token=TOKEN) as client:
        await client.post("/login", data={"token": TOKEN, "next": "/"})
        with capture_logs() as lines:
            await press(client, f"/hosts/{LANE}", f"/hosts/{LANE}", action="reset")

    def of(line: Any) -> tuple[str, str]:
        return line["action"], line["target"]

    [line] = [line for line in lines if line["event"] == "console.action"]
    assert ("reset", LANE) == of(line)
    assert re.fullmatch(r"session [0-9a-f]{8}", line["by"])


async def test_pages_say_that_redis_does_not_answer(unused_tcp_port: int) -> None:
    """They end in time, with a page that offers to try again."""
    async with console(f"redis://127.0.0.1:{unused_tcp_port}", redis_patience_s=0.2) as client:
        page = await client.get("/")

    assert 503 == page.status_code
    assert "Redis does not answer" in page.text
    assert "Try again" in page.text
