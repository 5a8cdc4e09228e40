"""A client that never reads."""

import socket

import pytest

from deploy.cluster.ports import HOST
from gateway.protocol import codes

from ..clients import Closed, RawClient
from ..http import scrape
from ..waiting import until
from .guarded import Bystander, Guarded, token

pytestmark = pytest.mark.servers


async def test_never_reads(guarded: Guarded, client: RawClient, bystander: Bystander) -> None:
    async def slow_clients() -> float:
        return (await scrape(guarded.node.url)).value("gateway_slow_disconnects_total")

    async def publish() -> None:
        for _ in range(20):
            assert "publish" in await client.ask("publish", channel="flood", data="x" * 60_000)

    before = await slow_clients()
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect((HOST, guarded.nginx.port))
        # With a queue of one frame the library stops to read from the socket.
        async with RawClient.connected(guarded.url, token(), sock=small.dup(), max_queue=1) as sluggard:
            assert "subscribe" in await sluggard.ask("subscribe", channel="flood")
            for _ in range(100):  # 120 MB; the buffers of the kernel and of nginx hold some
                await publish()
                exchanges = bystander.exchanges
                await until(lambda seen=exchanges: bystander.exchanges > seen, "the bystander goes on")  # type: ignore[misc]
                if await slow_clients() > before:
                    break
            # It may still read what was written before, and then why it was closed.
            assert await sluggard.closed() == Closed(codes.SLOW.code, codes.SLOW.reason)
    assert await slow_clients() == before + 1
