"""Access to the console: hosts, tokens, sessions, forms, and the header fields of responses."""

import hmac
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fetchfleet.worker.console.access.credentials import SESSION_S
from tests.support.console import BEARER, TOKEN, console
from tests.support.log_lines import capture_logs

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client, without the token, of a server with one."""
    async with console(redis_url, token=TOKEN) as client:
        yield client


async def log_in(client: httpx.AsyncClient, token: str = TOKEN, then: str = "/") -> httpx.Response:
    """Send the form of the login."""
    return await client.post("/login", data={"token": token, "next": then})


def form_token_in(page: httpx.Response) -> str:
    """Return the form token of the first form of a page."""
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page.text)
    assert found
    return found[1]


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:8080", "[::1]:8080", "127.9.9.9"])
async def test_without_a_token_the_names_of_this_machine_are_served(
    local: httpx.AsyncClient, host: str
) -> None:
    """A tunnel may use another port."""
    assert 200 == (await local.get("/", headers={"Host": host})).status_code


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example:8080", "127.0.0.1.nip.example", "192.0.2.1", "[2001:db8::1]"],
)
async def test_without_a_token_another_name_gets_403(local: httpx.AsyncClient, host: str) -> None:
    """A page that has rebound its name to 127.0.0.1 reads nothing, and gets no session."""
    for path in ("/", "/v1/batches", "/metrics", "/healthz"):
        response = await local.get(path, headers={"Host": host})

        assert (403, False) == (response.status_code, "set-cookie" in response.headers), path


@pytest.mark.parametrize("host", ["", "a b", "x/../y", "host:99999999", "a,b", "[::1"])
async def test_a_malformed_host_gets_400(client: httpx.AsyncClient, host: str) -> None:
    """With a token too."""
    assert 400 == (await client.get("/", headers={"Host": host})).status_code


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_change_from_another_origin_gets_403(
    local: httpx.AsyncClient, fields: dict[str, str]
) -> None:
    """Without a token nothing else distinguishes the request of a hostile page."""
    response = await local.post("/v1/batches", json={"url": "https://a.example/"}, headers=fields)

    assert 403 == response.status_code


async def test_requests_without_the_token_get_401_or_the_login(client: httpx.AsyncClient) -> None:
    """Programs get 401 as problem+json. Browsers are sent to the login, and then back."""
    for path in ("/v1/batches", "/v1/nothing", "/openapi.json", "/metrics"):
        refused = await client.get(path)
        assert (401, "Bearer", "application/problem+json") == (
            refused.status_code,
            refused.headers["www-authenticate"],
            refused.headers["content-type"],
        )
    for path in ("/healthzz", "/login/x", "/static", "/loginx"):  # not public by their beginnings
        assert 303 == (await client.get(path)).status_code, path
    page = await client.get("/hosts")
    changed = await client.post("/hosts")

    assert (303, "/login?next=/hosts") == (page.status_code, page.headers["location"])
    assert 401 == changed.status_code
    assert 200 == (await client.get("/healthz")).status_code
    assert 200 == (await client.get("/static/console.css")).status_code


@pytest.mark.parametrize(
    "credentials",
    ["Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
async def test_a_wrong_token_gets_401(client: httpx.AsyncClient, credentials: str) -> None:
    """Even with a valid session beside it."""
    await log_in(client)
    client.cookies.clear()

    response = await client.get("/v1/batches", headers={b"Authorization": credentials.encode("latin-1")})

    assert 401 == response.status_code


async def test_a_login_begins_a_session(client: httpx.AsyncClient) -> None:
    """The cookie is HttpOnly and SameSite=Strict. The browser returns to its page."""
    response = await log_in(client, then="/hosts?state=cooling")
    cookie = response.headers["set-cookie"]
    front = await client.get("/")

    assert (303, "/hosts?state=cooling") == (response.status_code, response.headers["location"])
    assert re.fullmatch(
        r"fetchfleet_8080=[0-9a-f]{32}\.[0-9]+\.[0-9a-f]{64}; Path=/; HttpOnly; SameSite=Strict", cookie
    )
    assert 200 == front.status_code


@pytest.mark.parametrize(
    "then", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/a\nb"]
)
async def test_a_login_leads_to_no_other_site(client: httpx.AsyncClient, then: str) -> None:
    """The target must be a path of this server."""
    assert "/" == (await log_in(client, then=then)).headers["location"]


async def test_cookies_are_secure_behind_https(redis_url: str) -> None:
    """By the option, or because a proxy on this machine says so, which sets the scheme of the request."""
    cookies = []
    options: dict[str, Any]
    for options in ({"is_https": True}, {"base_url": "https://localhost"}):
        async with console(redis_url, token=TOKEN, **options) as client:
            cookies.append((await log_in(client)).headers["set-cookie"])

    assert all(cookie.endswith("; Secure") for cookie in cookies)


async def test_failed_logins_of_an_address_are_limited(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five, even the token is refused for the rest of a minute."""
    now = [1000.0]
    monkeypatch.setattr("fetchfleet.worker.console.forms.mono_s", lambda: now[0])
    wrong = [(await log_in(client, "x" * 20)).status_code for _ in range(6)]
    limited = await log_in(client)
    now[0] += 60

    assert [403] * 5 + [429] == wrong
    assert (429, "60") == (limited.status_code, limited.headers["retry-after"])
    assert 303 == (await log_in(client)).status_code


async def test_forged_and_expired_cookies_are_no_session(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cookie with one changed digit, of another server, or after 12 h."""
    await log_in(client)
    [(name, cookie)] = client.cookies.items()
    digit = "0" if cookie[-1] != "0" else "1"
    client.cookies.clear()
    later = cookie.split(".")[0] + ".999999999." + cookie.split(".")[2]
    for forged in (cookie[:-1] + digit, later, "", "x", cookie + "0", "\x00"):
        response = await client.get("/", headers={"Cookie": f"{name}={forged}"})
        assert 303 == response.status_code, forged
    assert 200 == (await client.get("/", headers={"Cookie": f"{name}={cookie}"})).status_code
    now_s = access_now()
    monkeypatch.setattr("fetchfleet.worker.console.access.guard.mono_s", lambda: now_s + SESSION_S + 1)
    assert 303 == (await client.get("/", headers={"Cookie": f"{name}={cookie}"})).status_code


def access_now() -> float:
    """Return the clock of sessions."""
    from fetchfleet.worker.util.clock import mono_s  # noqa: PLC0415 patched elsewhere

    return mono_s()


async def test_cookies_of_other_servers_do_not_hide_the_session(client: httpx.AsyncClient) -> None:
    """Browsers send the cookies of all ports of a machine, and not all are well-formed."""
    await log_in(client)
    [(name, cookie)] = client.cookies.items()
    client.cookies.clear()
    header = f'theme={{"a":"b", c}}; x; =; {name}={cookie}; other="'

    assert 200 == (await client.get("/", headers={"Cookie": header})).status_code


async def test_a_logout_ends_the_session_everywhere(client: httpx.AsyncClient) -> None:
    """A copy of the cookie is worthless afterwards."""
    await log_in(client)
    [(name, cookie)] = client.cookies.items()
    token = form_token_in(await client.get("/"))
    response = await client.post("/logout", data={"form_token": token})

    assert (303, "/login") == (response.status_code, response.headers["location"])
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert 303 == (await client.get("/", headers={"Cookie": f"{name}={cookie}"})).status_code


@pytest.mark.parametrize("token", ["", "0" * 64, "x", None])
async def test_a_form_without_the_token_of_its_session_gets_403(
    client: httpx.AsyncClient, token: str | None
) -> None:
    """Every POST outside of the API is such a form, but the login."""
    await log_in(client)
    paths = [
        route.path
        for route in client._transport.app.routes  # type: ignore[attr-defined]
        if "POST" in (getattr(route, "methods", None) or ()) and not route.path.startswith("/v1/")
    ]
    assert "/logout" in paths
    for path in paths:
        if path != "/login":
            target = re.sub(r"{\w+(:\w+)?}", "a.example", path)
            form = {"other": "1"} if token is None else {"form_token": token}
            assert 403 == (await client.post(target, data=form)).status_code, path


async def test_the_form_token_of_another_session_is_refused(client: httpx.AsyncClient) -> None:
    """Each session has its own."""
    await log_in(client)
    other = form_token_in(await client.get("/"))
    client.cookies.clear()
    await log_in(client)

    assert 403 == (await client.post("/logout", data={"form_token": other})).status_code


async def test_a_session_cannot_change_anything_through_the_api(client: httpx.AsyncClient) -> None:
    """It may read. The API has no form token, so a change needs the token of the server."""
    await log_in(client)

    assert 200 == (await client.get("/v1/batches")).status_code
    assert 401 == (await client.delete("/v1/batches/0123456789abcdef")).status_code


@pytest.mark.parametrize("path", ["/", "/login", "/healthz", "/static/console.css", "/v1/x", "/nothing"])
async def test_every_response_has_the_security_fields(client: httpx.AsyncClient, path: str) -> None:
    """Errors and static files too. Pages have no inline script or style."""
    response = await client.get(path, headers=BEARER)

    assert CSP == response.headers["content-security-policy"]
    assert "nosniff" == response.headers["x-content-type-options"]
    assert "same-origin" == response.headers["referrer-policy"]
    assert ("no-cache" if "static" in path else "no-store") == response.headers["cache-control"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", response.text)


async def test_read_only_refuses_every_change(redis_url: str) -> None:
    """With 403, before anything is read; only logins are possible."""
    async with console(redis_url, token=TOKEN, read_only=True) as client:
        assert 303 == (await log_in(client)).status_code
        for method in ("POST", "PUT", "DELETE", "PATCH", "ANY"):
            for path in ("/v1/batches", "/v1/hosts/a.example/pause", "/hosts/a.example/pause"):
                response = await client.request(method, path, headers=BEARER)
                assert 403 == response.status_code, (method, path)


async def test_no_secret_reaches_the_log(client: httpx.AsyncClient) -> None:
    """Tokens, cookies and form tokens; refusals are logged with the address and the reason."""
    wrong = "wrong-token-0123456789"
    with capture_logs() as lines:
        await log_in(client, wrong)
        await log_in(client)
        form_token = form_token_in(await client.get("/"))
        [(_, cookie)] = client.cookies.items()
        await client.get("/v1/batches", headers={"Authorization": f"Bearer {wrong}"})
        await client.get(f"/v1/x?token={TOKEN}", headers=BEARER)
        await client.post("/logout", data={"form_token": form_token})
    events = [(line["event"], line.get("action") or line.get("why"), line["peer"]) for line in lines]

    assert ("console.denied", "wrong token", "192.0.2.7") in events
    assert ("console.action", "login", "192.0.2.7") in events
    assert ("console.action", "logout", "192.0.2.7") in events
    assert [] == [
        secret for secret in (TOKEN, wrong, cookie, cookie[:32], form_token) if secret in str(lines)
    ]


async def test_secrets_are_compared_in_constant_time(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token, the cookie and the form token all go through hmac.compare_digest."""
    compared: list[int] = []
    compare_digest = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append(len(one))
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    await client.get("/v1/x", headers=BEARER)
    await log_in(client)
    form_token = form_token_in(await client.get("/"))
    await client.post("/logout", data={"form_token": form_token})

    assert [32, 32] == compared[:2]
    assert len(compared) >= 5


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"a=1", "text/plain", 415),
        (b"token=" + b"x" * 300_000, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a=1" for _ in range(3000)), "application/x-www-form-urlencoded", 400),
        (b"token=%ff", "application/x-www-form-urlencoded", 400),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 400),
    ],
)
async def test_a_malformed_form_is_refused(
    client: httpx.AsyncClient, content: bytes, media_type: str, status: int
) -> None:
    """It is not read beyond its limit."""
    response = await client.post("/login", content=content, headers={"Content-Type": media_type})

    assert status == response.status_code
