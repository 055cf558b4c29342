"""The response to one request, read from the bytes of its connection. Pure."""

from fetchfleet.worker.errors import RemoteProtocolError
from fetchfleet.worker.http.http1.chunks import ChunkedBody
from fetchfleet.worker.http.http1.heads import Head, read_head
from fetchfleet.worker.http.wire import CHUNKED, UNTIL_CLOSE

MAX_HEAD_BYTES = 100 * 1024
"""The longest header section."""

MAX_INTERIM_BYTES = 512 * 1024
MAX_INTERIM_HEADS = 100
"""The bounds of the interim header sections (1xx, RFC 9110 §15.2) before the final one."""

_BODYLESS = frozenset({101, 204, 304})

_HTTP1 = b"HTTP/1."


class ResponseReader:
    """Reads one response: `feed` it what arrives, call `end` at the end of the connection.

    Its fields show what has been read so far. Nothing behind the end of the response is read.
    method: of the request.
    """

    __slots__ = (
        "_chunks",
        "_has_body",
        "_interim_bytes",
        "_interim_heads",
        "_left_bytes",
        "_received",
        "complete",
        "head",
        "held_bytes",
        "lenient",
        "pieces",
        "reusable",
    )

    def __init__(self, method: str) -> None:
        self.head: Head | None = None
        """The final header section, once it is complete."""
        self.pieces: list[bytes] = []
        """The parts of the body that nobody has taken."""
        self.held_bytes = 0
        """The length of `pieces`."""
        self.complete = False
        """Whether the whole body has come."""
        self.reusable = False
        """Whether the connection can be used for another request once this response is complete."""
        self.lenient = False
        """Whether only a lenient reading made sense of the header sections."""
        self._has_body = method != "HEAD"
        self._received = b""
        """The part of a header section that has come."""
        self._interim_bytes = 0
        self._interim_heads = 0
        self._chunks: ChunkedBody | None = None
        self._left_bytes = 0
        """The bytes that the body still lacks, or CHUNKED, or UNTIL_CLOSE."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises RemoteProtocolError; what was read before stays readable."""
        if self.head is None:
            data = self._read_heads(data)
        if self.complete:
            if data:  # another response, or what a reader could take for one (RFC 9112 §9.2)
                self.reusable = False
        elif data:
            self._read_body(data)

    def end(self) -> None:
        """Take the end of the connection. Raises RemoteProtocolError if the response is not complete."""
        self.reusable = False
        if self.head is None:
            begun = self._received or self._interim_heads
            raise RemoteProtocolError(
                f"the host closed the connection {'within the headers of' if begun else 'without'} a response"
            )
        if self._left_bytes > 0:
            raise RemoteProtocolError(
                f"the host closed the connection {self._left_bytes} bytes before the end"
            )
        if self._left_bytes == CHUNKED and not self.complete:
            raise RemoteProtocolError("the host closed the connection before the last chunk")
        self.complete = True

    def part_of(self, room: memoryview | None) -> memoryview | None:
        """Return the part of a room that the loop may fill with the next bytes of the body; None if none."""
        if room is None or self.head is None or self.complete or self._chunks is not None:
            return None
        return room if self._left_bytes == UNTIL_CLOSE else room[: self._left_bytes]

    def skip(self, size_bytes: int) -> None:
        """Count bytes of the body that were received into such a part, without `feed`."""
        if self._left_bytes != UNTIL_CLOSE:
            self._left_bytes -= size_bytes
            self.complete = not self._left_bytes

    def take(self) -> bytes:
        """Return what has come of the body since the last call."""
        taken = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.held_bytes = 0
        return taken

    def _read_heads(self, data: bytes) -> bytes:
        """Read header sections up to the final one; return what comes behind it."""
        searched, received, self._received = max(0, len(self._received) - 3), self._received + data, b""
        while True:
            if not received.startswith(_HTTP1):
                if received.startswith((b"\r", b"\n")):  # empty lines mean nothing here (RFC 9112 §2.2)
                    received, searched, self.lenient = received.lstrip(b"\r\n"), 0, True
                if not received.startswith(_HTTP1) and not _HTTP1.startswith(received):
                    raise RemoteProtocolError(f"no response of HTTP/1: {received[:100]!r}")
            found = read_head(received, searched)
            if (len(received) if found is None else found[1]) > MAX_HEAD_BYTES:
                raise RemoteProtocolError(f"response headers of more than {MAX_HEAD_BYTES} bytes")
            if found is None:
                self._received = received
                return b""
            head, end = found
            received, searched = received[end:], 0
            if not 100 <= head.status <= 199 or head.status == 101:
                self._begin_body(head)
                return received
            self.lenient = self.lenient or head.lenient
            self._interim_heads += 1
            self._interim_bytes += end
            if self._interim_heads > MAX_INTERIM_HEADS or self._interim_bytes > MAX_INTERIM_BYTES:
                raise RemoteProtocolError(f"no final response after {self._interim_heads} interim ones")

    def _begin_body(self, head: Head) -> None:
        bodyless = not self._has_body or head.status in _BODYLESS
        self.lenient = self.lenient or head.lenient
        self.reusable = head.persistent and not self.lenient and 200 <= head.status <= 599
        try:
            length = head.body_length
        except RemoteProtocolError:
            if not bodyless:
                raise
            self.reusable = False
        else:
            if head.status == 204 and length not in {0, UNTIL_CLOSE}:
                self.reusable = False
            if not bodyless:
                self._left_bytes = length
        if self._left_bytes == CHUNKED:
            self._chunks = ChunkedBody()
        elif self._left_bytes == UNTIL_CLOSE:
            self.reusable = False
        self.complete = not self._left_bytes
        self.head = head

    def _read_body(self, data: bytes) -> None:
        if self._chunks is not None:
            pieces: list[bytes] = []
            try:
                self._chunks.feed(data, pieces)
            finally:
                if piece := b"".join(pieces):
                    self.pieces.append(piece)
                    self.held_bytes += len(piece)
            self.complete = self._chunks.ended
            self.reusable = self.reusable and not self._chunks.in_doubt
            return
        if self._left_bytes != UNTIL_CLOSE:
            if len(data) > self._left_bytes:
                data, self.reusable = data[: self._left_bytes], False
            self._left_bytes -= len(data)
            self.complete = not self._left_bytes
        self.pieces.append(data)
        self.held_bytes += len(data)
