"""The WebSocket endpoint: admit, accept, then frames to the session until the connection ends."""

import asyncio
from contextlib import suppress
from typing import Protocol

import structlog
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.auth import allows_origin
from gateway.outbox import Flusher, Frame, Outbox, Writer
from gateway.protocol.codes import INAPPROPRIATE_PROTOCOL, INTERNAL_SERVER_ERROR, SHUTDOWN, SLOW, Disconnect
from gateway.session import Services, Session
from gateway.transports.frames import WRITER_EXTENSION

log = structlog.get_logger(__name__)

_GONE = Disconnect(1006, "connection lost")  # RFC 6455 section 7.1.5: never sent


class Admission(Protocol):
    """Who decides whether one more connection is taken."""

    @property
    def accepts(self) -> bool:
        """Whether the node takes new connections in its present phase."""


class WebSocketTransport:
    """Serves the client connections of a node, and knows them all."""

    def __init__(
        self,
        services: Services,
        admission: Admission,
        *,
        allowed_origins: tuple[str, ...],
        max_connections: int,
    ) -> None:
        self._services = services
        self._admission = admission
        self._allowed_origins = allowed_origins
        self._max_connections = max_connections
        self._flusher = Flusher(services.metrics.messages_out.inc)
        self.sessions: dict[Session, Outbox] = {}
        services.metrics.connections.set_function(lambda: len(self.sessions))
        services.metrics.outbox_bytes.set_function(lambda: sum(outbox.backlog for outbox in self.sessions.values()))

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection from handshake to end."""
        refusal = self._refusal(websocket)
        if refusal is not None:
            await websocket.send_denial_response(refusal)
            return
        await websocket.accept()
        prepared: Writer | None = websocket.scope["extensions"].get(WRITER_EXTENSION)
        if prepared is not None:
            await self._serve_session(websocket, prepared)
        else:
            async with SocketWriter(websocket) as writer:
                await self._serve_session(websocket, writer)

    def _refusal(self, websocket: WebSocket) -> PlainTextResponse | None:
        """Return the HTTP response that refuses the handshake. 503 sends the balancer to another node."""
        if not self._admission.accepts:
            return PlainTextResponse("not accepting connections", 503)
        if len(self.sessions) >= self._max_connections:
            return PlainTextResponse(f"server.max_connections is {self._max_connections}", 503)
        headers = websocket.headers
        if not allows_origin(headers.get("origin"), headers.get("host"), self._allowed_origins):
            log.info("origin refused", origin=headers.get("origin", "")[:200])
            return PlainTextResponse("origin not allowed", 403)
        return None

    async def _serve_session(self, websocket: WebSocket, writer: Writer) -> None:
        outbox = Outbox(writer, self._flusher, self._services.settings.outbox_max_bytes)
        session = Session(self._services, outbox)
        outbox.on_close = lambda disconnect: self._end(session, disconnect)
        self.sessions[session] = outbox
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                text = message.get("text")
                if text is None:
                    session.close(INAPPROPRIATE_PROTOCOL.because("send text frames"))
                else:
                    await session.receive(text)
        except WebSocketDisconnect:
            pass
        except Exception:
            log.exception("session failed", client=session.client)
            session.close(INTERNAL_SERVER_ERROR)
        finally:
            outbox.abandon(_GONE)

    def _end(self, session: Session, disconnect: Disconnect) -> None:
        del self.sessions[session]
        if disconnect is not _GONE:
            self._services.metrics.disconnected(disconnect.code)
            log.info("client disconnected", client=session.client, code=disconnect.code, reason=disconnect.reason)
        if disconnect is SLOW:
            self._services.metrics.slow_disconnects.inc()
        session.end()

    async def drain(self, seconds: float) -> None:
        """Have every connection leave with 3001, in slices spread over the time."""
        sessions = list(self.sessions)
        slices = max(1, min(len(sessions), int(seconds * 10)))
        for index in range(slices):
            for session in sessions[index::slices]:
                session.leave(SHUTDOWN)
            if index + 1 < slices:
                await asyncio.sleep(seconds / slices)


class SocketWriter:
    """The Writer where a server offers no prepared frames (another ASGI server, the test client): a task that sends."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._queue: asyncio.Queue[Frame | Disconnect] = asyncio.Queue()  # bounded by the outbox, through `buffered`
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Writer:
        self._task = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def write(self, frame: Frame) -> None:
        self._size += len(frame.payload)
        self._queue.put_nowait(frame)

    def buffered(self) -> int:
        return self._size

    def close(self, disconnect: Disconnect) -> None:
        self._queue.put_nowait(disconnect)

    async def _send(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # Starlette's word for a socket that is closed already
            while True:
                match await self._queue.get():
                    case Frame() as frame:
                        await self._websocket.send_text(frame.payload.decode())
                        self._size -= len(frame.payload)
                    case Disconnect() as disconnect:
                        await self._websocket.close(disconnect.code, disconnect.reason)
                        return
