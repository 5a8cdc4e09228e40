"""What is published on any node reaches every subscriber on every node: once, in one order."""

import asyncio
from itertools import cycle

import pytest

from deploy.cluster import Cluster

from .ledger import Message
from .sdks import SDKS, Client, SdkName, Sdks
from .traffic import data_of, report_on

pytestmark = pytest.mark.servers

EACH = 25


def entrances(cluster: Cluster) -> list[str]:
    """Each node directly, and nginx."""
    return [*(node.ws_url for node in cluster.nodes), cluster.ws_url]


async def published_everywhere(clients: list[Client], channel: str) -> None:
    """Let every client publish, all at the same time, and check what all of them received."""
    for client in clients:
        await client.subscribe(channel)
    messages = [(client, Message(client.name, number)) for number in range(EACH) for client in clients]
    await asyncio.gather(*(client.publish(channel, data_of(message)) for client, message in messages))
    for client in clients:
        await client.has_received(channel, len(messages))

    report = report_on(clients, {channel: {message: True for _, message in messages}})
    assert report.is_clean, report.faults
    assert report.acknowledged == len(messages)
    assert report.delivered == len(messages) * len(clients)
    offsets = [publication.offset for publication in clients[0].publications[channel]]
    assert offsets == list(range(1, len(messages) + 1))


@pytest.mark.parametrize("used", [(sdk,) for sdk in SDKS] + [SDKS], ids="+".join)
async def test_every_subscriber_on_every_node_gets_everything(
    cluster: Cluster, sdks: Sdks, channel: str, used: tuple[SdkName, ...]
) -> None:
    clients = [await sdks.client(sdk, url) for url in entrances(cluster) for sdk in used]
    await published_everywhere(clients, channel)


async def test_direct_namespace(cluster: Cluster, sdks: Sdks, channel: str) -> None:
    clients = [await sdks.client(sdk, url) for sdk, url in zip(cycle(SDKS), entrances(cluster), strict=False)]
    await published_everywhere(clients, f"direct:{channel}")


@pytest.mark.parametrize("sdk", SDKS)
async def test_history(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName) -> None:
    clients = [await sdks.client(sdk, url) for url in entrances(cluster)]
    for client in clients:
        await client.subscribe(channel)
    for number in range(1, 11):
        await clients[number % len(clients)].publish(channel, number)
        await clients[0].has_received(channel, number)  # they come from several nodes

    for client in clients:
        everything = await client.history(channel)
        assert [publication.data for publication in everything.publications] == list(range(1, 11))
        assert [publication.offset for publication in everything.publications] == list(range(1, 11))
        assert everything.offset == 10
        assert everything.publications == client.publications[channel]

        position = await client.history(channel, limit=0)
        assert position == ([], 10, everything.epoch)

        newest = await client.history(channel, limit=3, reverse=True)
        assert [publication.data for publication in newest.publications] == [10, 9, 8]

        rest = await client.history(channel, since=(7, everything.epoch))
        assert [publication.data for publication in rest.publications] == [8, 9, 10]


@pytest.mark.parametrize("sdk", SDKS)
async def test_history_of_the_direct_namespace(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName) -> None:
    channel = f"direct:{channel}"
    writer, reader = [await sdks.client(sdk, node.ws_url) for node in cluster.nodes[:2]]
    await reader.subscribe(channel)
    for number in range(3):
        await writer.publish(channel, number)
    history = await reader.history(channel)
    assert [publication.data for publication in history.publications] == [0, 1, 2]
