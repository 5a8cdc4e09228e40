"""Parts of the cluster break under traffic, and nobody misses anything.

The clients are of both SDKs, all through nginx. What breaks is started again by the test, and by the fixture `cluster`
when the test fails.
"""

import asyncio
import json
from collections.abc import Callable

import pytest
import redis.asyncio as redis_asyncio

from deploy.cluster import Cluster, Process

from .conftest import COUNTED
from .crowd import crowd
from .http import fullest_node
from .sdks import Client
from .traffic import Traffic, finished
from .waiting import until

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

OUTAGE_SECONDS = 5.0


async def test_node_killed(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    node = await fullest_node(cluster)
    await asyncio.to_thread(node.kill)
    await traffic.flows()
    await finished(traffic)
    moved = [client for client in clients if client.interruptions]
    assert 2 <= len(moved) < len(clients)
    assert all(times[-1].recovered for client in moved for times in client.subscribed.values())


async def test_every_node_killed_in_turn(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    for node in cluster.nodes:
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
    await are_back(clients)
    await finished(traffic)


async def test_all_nodes_killed(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    for node in cluster.nodes:
        await asyncio.to_thread(node.kill)
    for node in cluster.nodes:
        node.spawn()
    for node in cluster.nodes:
        await asyncio.to_thread(node.wait_answers)
    await are_back(clients)
    await finished(traffic)


async def are_back(clients: list[Client]) -> None:
    """Nodes that are ready again get clients at once: nginx must not hold against them that they were away."""
    for client in clients:
        times = len(client.interruptions) + 1
        await until(lambda: len(client.connections) >= times, f"{client.name} is back", within=8.0)  # noqa: B023


async def test_nginx_killed(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    await asyncio.to_thread(cluster.nginx.kill)
    await asyncio.to_thread(cluster.nginx.start)
    await until(lambda: all(client.interruptions for client in clients), "all clients noticed")
    await finished(traffic)


async def test_relay_killed(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    for relay in cluster.relays:  # each serves some of the channels
        await asyncio.to_thread(relay.kill)
        await traffic.flows()
        await asyncio.to_thread(relay.start)
    await finished(traffic)
    assert not any(client.interruptions for client in clients)


async def test_all_relays_killed(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    for relay in cluster.relays:
        await asyncio.to_thread(relay.kill)
    for relay in cluster.relays:
        await asyncio.to_thread(relay.start)
    await finished(traffic)
    assert not any(client.interruptions for client in clients)


async def test_relays_killed_again_and_again_in_a_dense_stream(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    kills = 0
    async with crowd("talk", cluster.ws_url, clients=60, channels=12, rate=15, seconds=8) as process:
        assert process.stdout
        summary = asyncio.create_task(process.stdout.readline())
        while not summary.done():
            relay = cluster.relays[kills % 2]
            await asyncio.to_thread(relay.kill)
            await asyncio.to_thread(relay.start)
            kills += 1
        report = json.loads(await summary)
    record_property(COUNTED, {"kills": kills, **report})
    assert kills >= 2
    assert report["faults"] == []
    assert report["acknowledged"] == report["published"] == 60 * 15 * 8 + 12
    assert report["delivered"] == report["acknowledged"] * 5


async def test_pubsub_connections_cut(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    async with redis_asyncio.from_url(cluster.redis_url) as redis:
        for _ in range(10):
            await redis.client_kill_filter(_type="pubsub")
            await traffic.flows()
    await finished(traffic)
    assert not any(client.interruptions for client in clients)


def stop(process: Process) -> None:
    """End it in good order."""
    process.stop()


def kill(process: Process) -> None:
    """End it at once."""
    process.kill()


def freeze(process: Process) -> None:
    """Leave it without an answer, and all connections open."""
    process.pause()


def bring_back(process: Process) -> None:
    """Start it, or let it go on."""
    process.resume()
    if not process.is_running:
        process.start()


AWAY = [
    *((name, end) for name in ("rabbitmq", "redis") for end in (stop, kill, freeze)),
    ("relay-1", freeze),
    ("node-1", freeze),
]


@pytest.mark.parametrize(("name", "end"), AWAY, ids=[f"{name} {end.__name__}" for name, end in AWAY])
async def test_away_for_a_while(
    cluster: Cluster, clients: list[Client], traffic: Traffic, name: str, end: Callable[[Process], None]
) -> None:
    (process,) = [process for process in cluster.processes if process.name == name]
    await asyncio.to_thread(end, process)
    await asyncio.sleep(OUTAGE_SECONDS)  # the one place where time is the content of the test: an outage of 5 s
    await asyncio.to_thread(bring_back, process)
    await finished(traffic)
    assert not any(client.interruptions for client in clients)  # the nodes keep their clients
