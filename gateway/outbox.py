"""What waits to be written to one client: bounded in bytes, joined into one frame, written once a turn of the loop."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.protocol.codes import SLOW, Disconnect

_LINE_BREAK = b"\n"


class Frame:
    """A text message and, made once however many receive it, its bytes on the wire."""

    __slots__ = ("_encoded", "messages", "payload")

    def __init__(self, payload: bytes, messages: int = 1) -> None:
        self.payload = payload
        self.messages = messages
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        """The payload as one unmasked, final text frame (RFC 6455 section 5.2)."""
        if self._encoded is None:
            size = len(self.payload)
            if size < 126:
                head = bytes((0x81, size))
            elif size < 65_536:
                head = b"\x81\x7e" + size.to_bytes(2, "big")
            else:
                head = b"\x81\x7f" + size.to_bytes(8, "big")
            self._encoded = head + self.payload
        return self._encoded


class Writer(Protocol):
    """The transport's side: takes frames without waiting, and tells how much of them is still with it."""

    def write(self, frame: Frame) -> None:
        """Hand a frame to the kernel, or keep it until the kernel takes it."""

    def buffered(self) -> int:
        """Bytes the kernel has not taken yet."""

    def close(self, disconnect: Disconnect) -> None:
        """Send a close frame after what was written, and cut the connection if the client does not answer it."""


class Flusher:
    """Writes, at the end of a turn of the event loop, every outbox that something was put in during it.

    `count` is told how many messages that were.
    """

    def __init__(self, count: Callable[[float], None]) -> None:
        self.count = count
        self._waiting: list[Outbox] = []

    def add(self, outbox: "Outbox") -> None:
        """Flush this outbox at the end of the turn. Called once per outbox and turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(outbox)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.count(sum([outbox.flush() for outbox in waiting]))


class Outbox:
    """The pending messages of one client. Never waits for it: who leaves more than `limit` bytes untaken is slow."""

    __slots__ = ("_flusher", "_limit", "_pending", "_writer", "closed", "on_close", "size")

    def __init__(self, writer: Writer, flusher: Flusher, limit: int) -> None:
        self._writer = writer
        self._flusher = flusher
        self._limit = limit
        self._pending: list[Frame] = []
        self.size = 0
        self.closed: Disconnect | None = None
        self.on_close: Callable[[Disconnect], None] | None = None

    def send(self, payload: bytes) -> None:
        """Put a message of this client only."""
        self.put(Frame(payload))

    def put(self, frame: Frame) -> None:
        """Put a frame, perhaps shared with other clients."""
        if self.closed is not None:
            return
        waiting = self.backlog
        if not self._pending:
            self._flusher.add(self)
        self._pending.append(frame)
        self.size += len(frame.payload)
        if waiting and waiting + len(frame.payload) > self._limit:
            # Much in one turn is not the client's fault: let the kernel take it, then see what the client left.
            self._flusher.count(self.flush())
            if self._writer.buffered() > self._limit:
                self.close(SLOW)

    @property
    def backlog(self) -> int:
        """Bytes that the client has not taken."""
        return self.size + self._writer.buffered()

    def flush(self) -> int:
        """Write what is pending as one frame; return how many messages that were."""
        pending = self._pending
        if not pending or self.closed is not None:
            return 0
        self._pending = []
        self.size = 0
        frame = pending[0] if len(pending) == 1 else Frame(_LINE_BREAK.join([one.payload for one in pending]))
        self._writer.write(frame)
        return sum([one.messages for one in pending])

    def close(self, disconnect: Disconnect) -> None:
        """Write what is pending (unless the client is slow), then close. The first call counts."""
        if self.closed is not None:
            return
        if disconnect is not SLOW:
            self._flusher.count(self.flush())
        self.abandon(disconnect)
        self._writer.close(disconnect)

    def abandon(self, disconnect: Disconnect) -> None:
        """Take nothing more: the connection is gone or going."""
        if self.closed is None:
            self.closed = disconnect
            self._pending.clear()
            self.size = 0
            if self.on_close is not None:
                self.on_close(disconnect)
