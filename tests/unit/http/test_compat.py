"""Every private name that worker/http/compat.py uses still exists and has its effect."""

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from fetchfleet.worker.http.compat import set_cookies, skip_content_length_check

REQUEST = [(b":method", b"GET"), (b":authority", b"a"), (b":scheme", b"https"), (b":path", b"/")]


async def test_a_client_uses_the_given_cookie_jar() -> None:
    """The client calls it to extract the cookies of each response."""
    seen: list[int] = []

    class Watched(httpx.Cookies):
        def extract_cookies(self, response: httpx.Response) -> None:
            seen.append(response.status_code)

    cookies = Watched()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"Set-Cookie": "a=1"}))
    async with httpx.AsyncClient(transport=transport) as client:
        set_cookies(client, cookies)
        await client.get("http://a.example/")

        assert client.cookies is cookies
    assert seen == [200]
    assert not cookies


@pytest.mark.parametrize("skipped", [True, False])
def test_h2_leaves_a_wrong_content_length_to_the_caller(*, skipped: bool) -> None:
    """Unchanged, h2 ends the whole connection: the second case shows that the change is still needed."""
    config = h2.config.H2Configuration(client_side=False, header_encoding=None)
    client, server = h2.connection.H2Connection(), h2.connection.H2Connection(config)
    client.initiate_connection()
    client.send_headers(1, REQUEST, end_stream=True)
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    if skipped:
        skip_content_length_check(client.streams[1])
    server.send_headers(1, [(b":status", b"200"), (b"content-length", b"5")])
    server.send_data(1, b"x" * 6, end_stream=True)

    if skipped:
        events = client.receive_data(server.data_to_send())
        assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    else:
        with pytest.raises(h2.exceptions.InvalidBodyLengthError):
            client.receive_data(server.data_to_send())
