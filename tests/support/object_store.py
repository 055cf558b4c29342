"""An S3 server for tests: moto in a process of its own, behind a layer that makes requests slow or fail.

A test gives it rules (`ObjectServer.fail`), and reads the requests that it received.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
CONTROL = "/-control/"
MAX_HOLD_S = 60.0
_PAST_RULES = {"X-Past-Rules": "1", "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3"}
_BINARY = {"Content-Type": "application/octet-stream"}

Start = Callable[[str, list[tuple[str, str]]], Any]


class Stored(NamedTuple):
    """An object in the bucket."""

    body: bytes
    headers: dict[str, str]
    """In lower case."""


class ObjectServer:
    """The client of a running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which obstore uses this server."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }

    def bucket(self) -> "Bucket":
        """Return a new bucket."""
        bucket = Bucket(self, f"bucket-{uuid.uuid4().hex[:12]}")
        self.request("PUT", f"/{bucket.name}")
        return bucket

    def fail(
        self,
        requests: str,
        *,
        status: int = 503,
        code: str = "SlowDown",
        times: int = 1 << 30,
        every: int = 1,
    ) -> None:
        """Fail requests whose `METHOD /bucket/key?query` matches the pattern, before the store has them.

        every: the rule applies to the first of so many matching requests.
        """
        rule = {"requests": requests, "status": status, "code": code, "times": times, "every": every}
        self._control("rules", rule)

    def cut(self, requests: str, *, after: bool, times: int = 1) -> None:
        """Close the connection of matching requests. after: the store has done them."""
        self._control("rules", {"requests": requests, "cut": True, "after": after, "times": times})

    def kill(self, pid: int, requests: str, *, skip: int, after: bool) -> None:
        """Kill a process at its matching request number `skip`, from 0. after: the store has done it."""
        self._control("rules", {"requests": requests, "kill": pid, "skip": skip, "after": after, "times": 1})

    def hold(self, requests: str, *, times: int = 1 << 30, after: bool = False) -> None:
        """Hold matching requests until `release`. after: the store has done them, and the reply is held."""
        self._control("rules", {"requests": requests, "hold": "after" if after else "before", "times": times})

    def release(self) -> None:
        """Drop all rules, and let held requests continue."""
        self._control("release", {})

    def requests(self, pattern: str = "") -> list[str]:
        """Return the requests so far, as `METHOD /bucket/key?query`, that match the pattern."""
        seen: list[str] = self._control("requests", {})
        return [request for request in seen if re.search(pattern, request)]

    def request(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Stored:
        """Send a request past the rules. Raises HTTPError."""
        request = urllib.request.Request(
            f"{self.url}{target}", method=method, data=body, headers={**(headers or {}), **_PAST_RULES}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return Stored(response.read(), {k.lower(): v for k, v in response.headers.items()})

    def _control(self, name: str, order: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}{CONTROL}{name}", method="POST", data=json.dumps(order).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read())


class Bucket:
    """A bucket of the server."""

    def __init__(self, server: ObjectServer, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        """The URL of the prefix that tests use."""
        return f"s3://{self.name}/some prefix"

    def requests(self, pattern: str = "") -> list[str]:
        """Return the requests for this bucket so far, as `METHOD /bucket/key?query`, that match."""
        return [seen for seen in self.server.requests(pattern) if f" /{self.name}/" in seen]

    def objects(self) -> dict[str, Stored]:
        """Return the objects below the prefix by path, without fetchfleet's own."""
        found = self.keys()
        return {path: self.get(path) for path in found if not path.startswith(".fetchfleet/")}

    def keys(self) -> list[str]:
        """Return the paths of all objects below the prefix."""
        listing = self.server.request("GET", f"/{self.name}?list-type=2&encoding-type=url&max-keys=1000").body
        keys = [unquote(key.text or "") for key in ET.fromstring(listing).findall(".//{*}Key")]
        return sorted(key.removeprefix("some prefix/") for key in keys)

    def get(self, path: str) -> Stored:
        """Return an object."""
        return self.server.request("GET", f"/{self.name}/{quote(f'some prefix/{path}')}")

    def put(self, path: str, body: bytes) -> None:
        """Store an object, as another program does."""
        self.server.request("PUT", f"/{self.name}/{quote(f'some prefix/{path}')}", _BINARY, body)

    def delete(self, path: str) -> None:
        """Delete an object."""
        self.server.request("DELETE", f"/{self.name}/{quote(f'some prefix/{path}')}")

    def uploads(self) -> int:
        """Return the number of multipart uploads that are neither complete nor aborted."""
        listing = self.server.request("GET", f"/{self.name}?uploads").body
        return len(ET.fromstring(listing).findall(".//{*}UploadId"))


@contextmanager
def serving() -> Iterator[ObjectServer]:
    """Run a server for the length of the block."""
    command = [sys.executable, "-m", "tests.support.object_store"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield ObjectServer(process.stdout.readline().strip())
        finally:
            process.kill()


class _Rules:
    """A WSGI layer in front of moto."""

    def __init__(self, store: Callable[[Any, Start], Iterable[bytes]]) -> None:
        self._moto = store
        self._moto_lock = threading.Lock()
        self._rules: list[dict[str, Any]] = []
        self._seen: list[str] = []
        self._lock = threading.Lock()
        self._released = threading.Event()

    def __call__(self, environ: Any, start: Start) -> Iterable[bytes]:
        path = environ["RAW_URI"] if "RAW_URI" in environ else environ["PATH_INFO"]
        if path.startswith(CONTROL):
            reply = self._control(path.removeprefix(CONTROL), _read(environ))
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(reply).encode()]
        if environ.get("HTTP_X_PAST_RULES"):
            return self._store(environ, start)
        environ["wsgi.input"] = io.BytesIO(_read(environ))  # a body that breaks off raises here
        rule = self._rule_of(f"{environ['REQUEST_METHOD']} {unquote(path)}")
        if rule.get("hold") == "before":
            self._wait()
        if "status" in rule:
            start(f"{rule['status']} {rule['code']}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{rule['code']}</Code><Message>as the test asks</Message></Error>".encode()]
        ends = "kill" in rule or "cut" in rule
        if ends and not rule["after"]:
            _end_client(environ, rule)
        reply = self._store(environ, start)
        if ends:
            _end_client(environ, rule)
        if rule.get("hold") == "after":
            self._wait()
        return reply

    def _store(self, environ: Any, start: Start) -> list[bytes]:
        """Let moto respond, one request at a time: two writes of one key at once make it fail."""
        with self._moto_lock:
            return list(self._moto(environ, start))

    def _wait(self) -> None:
        released = self._released
        released.wait(MAX_HOLD_S)

    def _rule_of(self, request: str) -> dict[str, Any]:
        with self._lock:
            self._seen.append(request)
            for rule in self._rules:
                if rule["times"] and re.search(rule["requests"], request):
                    rule["seen"] = seen = rule.get("seen", -1 - rule.get("skip", 0)) + 1
                    if seen >= 0 and seen % rule.get("every", 1) == 0:
                        rule["times"] -= 1
                        return rule
        return {}

    def _control(self, name: str, text: bytes) -> Any:
        with self._lock:
            if name == "requests":
                return self._seen
            if name == "rules":
                self._rules.append(json.loads(text))
            else:
                self._rules.clear()
                self._released.set()
                self._released = threading.Event()
        return None


def _end_client(environ: Any, rule: dict[str, Any]) -> NoReturn:
    """Kill the client, or close its connection."""
    if "kill" in rule:
        os.kill(rule["kill"], signal.SIGKILL)
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionError("the client is gone")


def _read(environ: Any) -> bytes:
    wanted = int(environ.get("CONTENT_LENGTH") or 0)
    body: bytes = environ["wsgi.input"].read(wanted)
    if len(body) < wanted:
        raise ConnectionError("the request broke off")
    return body


def main() -> None:
    """Serve until killed. The first line of the output is the URL."""
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            """Log nothing."""

    app = _Rules(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    server.serve_forever()


def _exit_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    main()
