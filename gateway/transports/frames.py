"""Prepared frames: uvicorn's sans-I/O WebSocket protocol, with a way to write bytes that many connections share.

The class offers itself to the app as the ASGI extension `gateway.writer`. It also mends what uvicorn 0.54 leaves open:
a client that stops reading is cut off in bounded time, and a flood of pings to a client that does not read is ignored.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode
from websockets.frames import Frame as WireFrame
from websockets.http11 import Request

from gateway.outbox import Frame
from gateway.protocol.codes import SHUTDOWN, Disconnect

WRITER_EXTENSION = "gateway.writer"
_DEFAULT_CLOSE_SECONDS = 5.0
_HEADERS_REFUSED = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_QUIET_SECONDS = 0.25  # within close_seconds


class PreparedFramesProtocol(WebSocketsSansIOProtocol):
    """One server connection; a Writer for its outbox. `close_seconds` bounds every wait for the client."""

    close_seconds = _DEFAULT_CLOSE_SECONDS
    quiet_timer: asyncio.TimerHandle | None = None

    # As a Writer.

    def write(self, frame: Frame) -> None:
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(frame.encoded)

    def buffered(self) -> int:
        return self.transport.get_write_buffer_size()

    def close(self, disconnect: Disconnect) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        try:
            self.conn.send_close(disconnect.code, disconnect.reason)
        except InvalidState:  # the client closed first
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": disconnect.code, "reason": disconnect.reason})
        self._await_close()

    def _await_close(self) -> None:
        """Read on for the client's answer to the close frame, but not for ever."""
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_seconds, self.transport.abort)

    # As uvicorn's protocol.

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # uvicorn says nothing to a handshake whose headers the WebSocket library refuses: it would hang.
            self.transport.write(_HEADERS_REFUSED)
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope: dict[str, Any] | None = getattr(self, "scope", None)  # absent when the handshake was refused
        if scope is not None:
            scope["extensions"][WRITER_EXTENSION] = self

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # refused by the app: uvicorn would log that it is not complete

    def handle_ping(self) -> None:
        answer = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(answer)

    def handle_close(self, event: WireFrame) -> None:
        super().handle_close(event)
        self._abort_later()

    def send_receive_event_to_app(self) -> None:
        # As uvicorn's, which logs a stack trace for every message that is not UTF-8.
        data, self.frames = b"".join(self.frames), []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "text":
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:
                self.conn.send_close(CloseCode.INVALID_DATA, "invalid UTF-8")
                self.handle_parser_exception()
                return
        else:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_parser_exception(self) -> None:
        """End a connection whose input is at fault; called again for all that arrives after the fault.

        To close with input unread would reset the connection, and the reset overtake the close frame. So what is still
        coming is read and dropped, until the client is quiet.
        """
        if not self.close_sent:
            closed = self.conn.close_sent
            assert closed is not None
            self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self._await_close()
        if self.quiet_timer is not None:
            self.quiet_timer.cancel()
        self.quiet_timer = self.loop.call_later(_QUIET_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        if self.handshake_complete:
            self.close(SHUTDOWN)
        super().shutdown()
        self._abort_later()

    def _abort_later(self) -> None:
        """Bound the wait for a closing transport whose client does not read what is left."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.close_seconds, self.transport.abort)
