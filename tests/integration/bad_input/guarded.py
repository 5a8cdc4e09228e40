"""The node that these tests send bad input to, and what they look at."""

import asyncio
from typing import Any
from uuid import uuid4

import jwt

from deploy.cluster import Gateway, Nginx
from deploy.cluster.ports import HOST
from gateway.protocol import codes

from ..clients import Message, RawClient

SECRET = "the secret of these tests, long enough for HS256"
ORIGIN = "https://app.example"
FRAME_MAX_BYTES = 65_536
CONNECT_SECONDS = 1.0


class Guarded:
    """The node and its nginx."""

    def __init__(self, node: Gateway, nginx: Nginx) -> None:
        self.node = node
        self.nginx = nginx
        self.url = f"ws://{HOST}:{nginx.port}/connection/websocket"


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """A token of user 42."""
    return jwt.encode({"sub": "42", **claims}, secret, algorithm=algorithm)


class Bystander:
    """A client that does everything right, all the time."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self.exchanges = 0

    async def run(self) -> None:
        """Publish and receive what was published, for ever."""
        channel = f"bystander-{uuid4().hex}"
        assert "subscribe" in await self._client.ask("subscribe", channel=channel)
        while True:
            reply = await self._client.ask("publish", channel=channel, data=self.exchanges)
            assert "publish" in reply, reply
            while not self._client.pushes:
                self._client.pushes.append((await self._client.hear())["push"])
            assert [push["pub"]["data"] for push in self._client.pushes] == [self.exchanges]
            self._client.pushes.clear()
            self.exchanges += 1
            await asyncio.sleep(0.005)  # its rate; without a pause it would be load


def failed(reply: Message) -> tuple[int, bool]:
    """The error of a reply, and whether it is temporary."""
    return reply["error"]["code"], reply["error"].get("temporary", False)


def error(code: codes.ReplyError) -> tuple[int, bool]:
    """How an error looks in a reply."""
    return code.code, code.temporary


async def still_works(client: RawClient) -> None:
    """The connection lives on after an error in a reply."""
    assert "publish" in await client.ask("publish", channel="after", data={})
