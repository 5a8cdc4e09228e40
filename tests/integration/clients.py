"""A raw client of the protocol, to say what no SDK would."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .waiting import WITHIN_SECONDS

Message = dict[str, Any]


class Closed(NamedTuple):
    """How the server closed the connection."""

    code: int
    reason: str


class RawClient:
    """A WebSocket and JSON; it answers pings while it listens. Every wait is bounded."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.pushes: list[Message] = []
        """Pushes that came while a reply was awaited."""
        self._ids = 0
        self._lines: list[str] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, **options: Any) -> AsyncIterator["RawClient"]:
        """Open a WebSocket, with options of websockets' `connect`."""
        async with connect(url, proxy=None, compression=None, ping_interval=None, max_size=None, **options) as socket:
            yield cls(socket)

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, token: str = "", **options: Any) -> AsyncIterator["RawClient"]:
        """Open a WebSocket and connect."""
        async with cls.open(url, **options) as client:
            reply = await client.ask("connect", token=token)
            assert "connect" in reply, reply
            yield client

    async def say(self, *commands: str | Message) -> None:
        """Send commands, or lines that are none, in one text frame."""
        await self.socket.send("\n".join(line if isinstance(line, str) else json.dumps(line) for line in commands))

    async def hear(self) -> Message:
        """Return the next reply or push."""
        async with asyncio.timeout(WITHIN_SECONDS):
            while True:
                while self._lines:
                    message: Message = json.loads(self._lines.pop(0))
                    if message:
                        return message
                    await self.socket.send("{}")
                self._lines = str(await self.socket.recv()).splitlines()

    async def ask(self, method: str, **parameters: Any) -> Message:
        """Send a command and return its reply."""
        self._ids += 1
        await self.say({"id": self._ids, method: parameters})
        return await self.reply(self._ids)

    async def reply(self, number: int) -> Message:
        """Return the reply to the command with this id."""
        while (message := await self.hear()).get("id") != number:
            assert "push" in message, message
            self.pushes.append(message["push"])
        return message

    async def closed(self) -> Closed:
        """Wait until the server has closed the connection; what it says before that is ignored."""
        async with asyncio.timeout(WITHIN_SECONDS):
            try:
                while True:
                    await self.socket.recv()
            except ConnectionClosed:
                return Closed(self.socket.close_code or 0, self.socket.close_reason or "")
