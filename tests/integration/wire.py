"""A TCP connection that a test can cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from deploy.cluster.ports import HOST


class Wire:
    """Forwards a port of its own to a server, until it is cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["Wire"]:
        """Lay a wire to a port of this machine."""
        wire = cls(port)
        wire._server = await asyncio.start_server(wire._accept, HOST, 0)
        try:
            yield wire
        finally:
            wire.cut()
            wire._server.close()
            await wire._server.wait_closed()

    @property
    def ws_url(self) -> str:
        """Where clients connect."""
        assert self._server
        port = self._server.sockets[0].getsockname()[1]
        return f"ws://{HOST}:{port}/connection/websocket"

    def cut(self) -> None:
        """Break all connections without a goodbye, and refuse new ones."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Let new connections pass."""
        self._is_cut = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(HOST, self._port)
            await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
