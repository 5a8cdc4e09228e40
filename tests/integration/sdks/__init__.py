"""The official SDKs as clients: npm `centrifuge` in a process of its own, PyPI `centrifuge-python` in this one.

Both look the same to a test, and record what happens to them.
"""

import ssl
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Literal

from .client import Client, CommandFailedError, Ended, History, Received, Subscribed
from .javascript import JS_FOLDER, JavascriptClient, NodeProcess
from .python import PythonClient

__all__ = [
    "JS_FOLDER",
    "SDKS",
    "Client",
    "CommandFailedError",
    "Ended",
    "History",
    "Received",
    "SdkName",
    "Sdks",
    "Subscribed",
]

SdkName = Literal["javascript", "python"]
SDKS: tuple[SdkName, ...] = ("javascript", "python")


class Sdks:
    """Makes clients of both SDKs, and closes them. An async context manager."""

    def __init__(self, ca: Path | None = None) -> None:
        self._ca = ca
        self._stack = AsyncExitStack()
        self._node: NodeProcess | None = None
        self._names = count(1)

    async def __aenter__(self) -> "Sdks":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def client(self, sdk: SdkName, url: str, *, token: str = "") -> Client:
        """Make a client and wait until it is connected."""
        client = await self.opened(sdk, url, token=token)
        await client.connected()
        return client

    async def opened(self, sdk: SdkName, url: str, *, token: str = "") -> Client:
        """Make a client that begins to connect."""
        name = f"{sdk} {next(self._names)}"
        client: Client
        if sdk == "python":
            context = ssl.create_default_context(cafile=self._ca) if url.startswith("wss:") else None
            client = PythonClient(name, url, token, context)
        else:
            if self._node is None:
                self._node = await self._stack.enter_async_context(NodeProcess.start(self._ca))
            client = JavascriptClient(name, url, self._node, token)
        await client.open()
        self._stack.push_async_callback(client.close)
        return client
