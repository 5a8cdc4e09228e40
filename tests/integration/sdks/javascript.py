"""Clients of npm `centrifuge`, which live in a process of Node.js: js/client.mjs."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from .client import COMMAND_SECONDS, RECONNECT_SECONDS, Client, CommandFailedError, Ended, History, Received, Subscribed

JS_FOLDER = Path(__file__).parents[1] / "js"

_LINE_MAX_BYTES = 1 << 24


class JavascriptClient(Client):
    """A client of the JavaScript SDK, in the process `node`."""

    def __init__(self, name: str, url: str, node: "NodeProcess", token: str = "") -> None:
        super().__init__(name)
        self._node = node
        low, high = (int(seconds * 1000) for seconds in RECONNECT_SECONDS)
        self._options = {
            "token": token,
            "timeout": int(COMMAND_SECONDS * 1000),
            "minReconnectDelay": low,
            "maxReconnectDelay": high,
        }
        self._url = url

    async def open(self) -> None:
        self._node.clients[self.name] = self
        await self._call("open", url=self._url, options=self._options)

    async def _subscribe(self, channel: str) -> None:
        await self._call("subscribe", channel=channel)

    async def publish(self, channel: str, data: Any) -> None:
        await self._call("publish", channel=channel, data=data)

    async def history(
        self, channel: str, limit: int = -1, *, since: tuple[int, str] | None = None, reverse: bool = False
    ) -> History:
        position = {"offset": since[0], "epoch": since[1]} if since else None
        page = await self._call("history", channel=channel, limit=limit, since=position, reverse=reverse)
        publications = [Received(**publication) for publication in page["publications"]]
        return History(publications, page["offset"], page["epoch"])

    async def close(self) -> None:
        await self._call("close")

    async def _call(self, op: str, **parameters: Any) -> Any:
        return await self._node.call({"client": self.name, "op": op, **parameters})

    def note(self, event: dict[str, Any]) -> None:
        """Record what the SDK told."""
        match event:
            case {"event": "publication", "channel": channel}:
                publication = Received(event["data"], event["offset"], event["connection"])
                self.publications[channel].append(publication)
            case {"event": "subscribed", "channel": channel}:
                self.subscribed[channel].append(Subscribed(event["wasRecovering"], event["recovered"]))
            case {"event": "unsubscribed", "channel": channel}:
                self.unsubscribed[channel].append(Ended(event["code"], event["reason"]))
            case {"event": "connecting"}:
                self.note_connecting(event["code"], event["reason"])
            case {"event": "connected"}:
                self.connections.append(event["id"])
            case {"event": "disconnected"}:
                self.disconnected.append(Ended(event["code"], event["reason"]))


class NodeProcess:
    """js/client.mjs: JSON lines to it, JSON lines from it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.clients: dict[str, JavascriptClient] = {}
        self._process = process
        self._ids = count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    @asynccontextmanager
    async def start(cls, ca: Path | None = None) -> AsyncIterator["NodeProcess"]:
        """Start it; `ca` is a certificate that its clients trust."""
        process = await asyncio.create_subprocess_exec(
            "node",
            "client.mjs",
            cwd=JS_FOLDER,
            env={**os.environ, **({"NODE_EXTRA_CA_CERTS": str(ca)} if ca else {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_MAX_BYTES,
        )
        it = cls(process)
        reader = asyncio.create_task(it._read())
        try:
            yield it
        finally:
            assert process.stdin
            process.stdin.close()  # its end
            await process.wait()
            await reader
            assert process.returncode == 0, "client.mjs failed; what it said is on standard error"

    async def call(self, command: dict[str, Any]) -> Any:
        """Have an operation carried out, and return its result. Commands keep the order of their calls."""
        number = next(self._ids)
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
        return await answer

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            message = json.loads(line)
            if "event" in message:
                self.clients[message["client"]].note(message)
                continue
            answer = self._calls.pop(message["id"])
            if answer.done():  # whoever called is gone
                continue
            if "error" in message:
                answer.set_exception(CommandFailedError(message["error"]["code"], message["error"]["message"]))
                answer.exception()  # whoever called may be gone
            else:
                answer.set_result(message["result"])
