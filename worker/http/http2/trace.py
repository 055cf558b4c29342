"""httpcore2's trace events, sent by HTTP/2 connections."""

import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpcore2


class TraceStage:
    """A stage of an exchange: `http2.<stage>.started` before it, `.complete` or `.failed` after it."""

    def __init__(self, request: httpcore2.Request, stage: str, stream_id: int) -> None:
        self._trace: Callable[[str, Mapping[str, Any]], Awaitable[None]] | None
        self._trace = request.extensions.get("trace")
        self._stage = stage
        self._stream_id = stream_id

    async def __aenter__(self) -> None:
        if self._trace is not None:
            await self._trace(f"http2.{self._stage}.started", {"stream_id": self._stream_id})

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: types.TracebackType | None,
    ) -> None:
        if self._trace is None:
            return
        if error is None:
            await self._trace(f"http2.{self._stage}.complete", {"return_value": None})
        else:
            await self._trace(f"http2.{self._stage}.failed", {"exception": error})
