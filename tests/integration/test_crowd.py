"""Many clients at once, counted by the clients; and what is left of them when they are gone."""

import json
import os
from collections.abc import Callable

import pytest
import redis.asyncio as redis_asyncio

from deploy.cluster import Cluster

from .conftest import COUNTED
from .crowd import crowd
from .http import scrape
from .waiting import until

pytestmark = pytest.mark.servers


async def values(cluster: Cluster, name: str) -> list[float]:
    """A metric of every node."""
    return [(await scrape(node.url)).value(name) for node in cluster.nodes]


async def test_nothing_lost_duplicated_or_reordered(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    async with crowd("talk", cluster.ws_url, clients=300, channels=30, rate=2, seconds=20) as process:
        assert process.stdout
        summary = json.loads(await process.stdout.readline())
    record_property(COUNTED, summary)
    assert len(summary["nodes"]) == 3
    assert min(summary["nodes"]) > 50  # least_conn
    assert summary["acknowledged"] == summary["published"] == 300 * 2 * 20 + 30
    assert summary["delivered"] == summary["acknowledged"] * 10
    assert summary["faults"] == []
    assert summary["interrupted"] == 0


def open_files(cluster: Cluster) -> list[int]:
    """How many files and sockets each node has open."""
    return [len(os.listdir(f"/proc/{node.pid}/fd")) for node in cluster.nodes]


async def test_everything_is_released(cluster: Cluster) -> None:
    files = sum(open_files(cluster))
    async with crowd("visit", cluster.ws_url, clients=1000, channels=50) as process:
        assert process.stdin
        assert process.stdout
        channels = json.loads(await process.stdout.readline())["channels"]
        assert sum(await values(cluster, "gateway_connections")) == 1000
        assert sum(await values(cluster, "gateway_subscriptions")) == 1000 * 50
        assert await values(cluster, "gateway_channels") == [50, 50, 50]
        assert len(await heard_channels(cluster)) == len(channels)
        assert sum(open_files(cluster)) > files + 900
        process.stdin.write(b"go\n")

    for name in ("gateway_connections", "gateway_subscriptions", "gateway_channels", "gateway_outbox_bytes"):

        async def are_zero(name: str = name) -> bool:
            return not any(await values(cluster, name))

        await until(are_zero, f"{name} 0 on every node")

    async def hear_nothing() -> bool:
        return not await heard_channels(cluster)

    await until(hear_nothing, "no channel subscribed in Redis")

    # What may remain are connections of the pools to Redis, which grow with the load.
    await until(lambda: sum(open_files(cluster)) < files + 50, "sockets closed")


async def heard_channels(cluster: Cluster) -> list[bytes | str]:
    """What any node subscribes to in Redis."""
    async with redis_asyncio.from_url(cluster.redis_url) as client:
        return list(await client.pubsub_channels())
