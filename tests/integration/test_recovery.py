"""A client that was away gets what it missed, or is told that it cannot."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis_asyncio

from deploy.cluster import Cluster

from .sdks import SDKS, Client, SdkName, Sdks, Subscribed
from .waiting import until
from .wire import Wire

pytestmark = [pytest.mark.servers, pytest.mark.parametrize("sdk", SDKS)]

RECOVERED = Subscribed(was_recovering=True, recovered=True)
NOT_RECOVERED = Subscribed(was_recovering=True, recovered=False)


@pytest.fixture
async def wire(cluster: Cluster) -> AsyncIterator[Wire]:
    """A wire to nginx."""
    async with Wire.to(cluster.nginx.port) as wire:
        yield wire


async def publish(clients: list[Client], channel: str, numbers: range) -> None:
    """Publish numbers in order, on the nodes of these clients in turn."""
    for number in numbers:
        await clients[number % len(clients)].publish(channel, number)


async def test_after_a_dropped_connection(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName, wire: Wire) -> None:
    publishers = [await sdks.client("python", node.ws_url) for node in cluster.nodes]
    subscriber = await sdks.client(sdk, wire.ws_url)
    await subscriber.subscribe(channel)
    for times, first in enumerate((0, 40), 2):
        await publish(publishers, channel, range(first, first + 10))
        await subscriber.has_received(channel, first + 10)
        wire.cut()
        await publish(publishers, channel, range(first + 10, first + 40))
        wire.mend()
        assert await subscriber.has_subscribed(channel, times) == RECOVERED
        await subscriber.has_received(channel, first + 40)
    await publish(publishers, channel, range(80, 90))
    await subscriber.has_received(channel, 90)

    assert subscriber.data(channel) == list(range(90))
    offsets = [publication.offset for publication in subscriber.publications[channel]]
    assert offsets == list(range(1, 91))
    assert len(subscriber.connections) == 3


async def test_with_nothing_missed(sdks: Sdks, cluster: Cluster, channel: str, sdk: SdkName, wire: Wire) -> None:
    subscriber = await sdks.client(sdk, wire.ws_url)
    await subscriber.subscribe(channel)
    wire.cut()
    wire.mend()
    assert await subscriber.has_subscribed(channel, 2) == RECOVERED
    await subscriber.publish(channel, "first")
    await subscriber.has_received(channel, 1)
    assert subscriber.data(channel) == ["first"]


async def test_connection_cut_under_traffic(
    cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName, wire: Wire
) -> None:
    publisher = await sdks.client("python", cluster.nodes[0].ws_url)
    subscriber = await sdks.client(sdk, wire.ws_url)
    await subscriber.subscribe(f"long:{channel}")
    for times in range(2, 7):  # cut in the middle of a stream, at whatever byte
        numbers = range((times - 2) * 100, (times - 1) * 100)
        stream = asyncio.gather(*(publisher.publish(f"long:{channel}", number) for number in numbers))
        await subscriber.has_received(f"long:{channel}", numbers[10])
        wire.cut()
        wire.mend()
        await stream
        assert await subscriber.has_subscribed(f"long:{channel}", times) == RECOVERED
    await subscriber.has_received(f"long:{channel}", 500)
    assert subscriber.data(f"long:{channel}") == list(range(500))


async def test_of_more_than_the_history_holds(
    cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName, wire: Wire
) -> None:
    channel = f"short:{channel}"
    publisher = await sdks.client("python", cluster.nodes[0].ws_url)
    subscriber = await sdks.client(sdk, wire.ws_url)
    await subscriber.subscribe(channel)

    wire.cut()
    await publish([publisher], channel, range(5))  # all that is kept
    wire.mend()
    assert await subscriber.has_subscribed(channel, 2) == RECOVERED
    await subscriber.has_received(channel, 5)

    wire.cut()
    await publish([publisher], channel, range(100, 106))  # one more
    wire.mend()
    assert await subscriber.has_subscribed(channel, 3) == NOT_RECOVERED

    await publish([publisher], channel, range(5, 8))  # it goes on from where it is told it stands
    await subscriber.has_received(channel, 8)
    wire.cut()
    await publish([publisher], channel, range(8, 10))
    wire.mend()
    assert await subscriber.has_subscribed(channel, 4) == RECOVERED
    await subscriber.has_received(channel, 10)
    assert subscriber.data(channel) == list(range(10))


async def test_in_the_direct_namespace(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName, wire: Wire) -> None:
    channel = f"direct:{channel}"
    publishers = [await sdks.client("python", node.ws_url) for node in cluster.nodes]
    subscriber = await sdks.client(sdk, wire.ws_url)
    await subscriber.subscribe(channel)
    await publish(publishers, channel, range(10))
    await subscriber.has_received(channel, 10)
    wire.cut()
    await publish(publishers, channel, range(10, 40))
    wire.mend()
    assert await subscriber.has_subscribed(channel, 2) == RECOVERED
    await subscriber.has_received(channel, 40)
    assert subscriber.data(channel) == list(range(40))


async def test_after_a_restart_of_the_node(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName) -> None:
    node, other, _ = cluster.nodes
    publisher = await sdks.client("python", other.ws_url)
    subscriber = await sdks.client(sdk, node.ws_url)  # not through nginx: it comes back to this very node
    await subscriber.subscribe(channel)
    await publish([publisher], channel, range(10))
    await subscriber.has_received(channel, 10)

    assert await asyncio.to_thread(node.stop) == 0
    await publish([publisher], channel, range(10, 40))
    await asyncio.to_thread(node.start)

    assert await subscriber.has_subscribed(channel, 2) == RECOVERED
    await subscriber.has_received(channel, 40)
    assert subscriber.data(channel) == list(range(40))
    assert subscriber.interruptions[0].code == 3001


async def test_after_redis_has_lost_its_data(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName) -> None:
    subscribers = [await sdks.client(sdk, node.ws_url) for node in cluster.nodes]
    for subscriber in subscribers:
        await subscriber.subscribe(channel)
    await publish(subscribers, channel, range(10))
    for subscriber in subscribers:
        await subscriber.has_received(channel, 10)

    async with redis_asyncio.from_url(cluster.redis_url) as redis:
        await redis.flushall()
    await subscribers[0].publish(channel, "the first of a new epoch")  # perhaps not seen, but never silently
    for subscriber in subscribers:
        assert await subscriber.has_subscribed(channel, 2) == NOT_RECOVERED
        assert len(subscriber.connections) == 1
    await publish(subscribers, channel, range(10, 20))
    for subscriber in subscribers:
        await until(lambda data=subscriber.data: data(channel)[-10:] == list(range(10, 20)), "it goes on")  # type: ignore[misc]
