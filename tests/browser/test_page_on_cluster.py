"""The page at `/` through nginx on a cluster of three nodes, one of which is killed under a tab."""

import asyncio
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.async_api import Browser, expect

from deploy.cluster import Cluster, Gateway
from deploy.cluster.processes import wait_until

from .conftest import OpenTab

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes and two relays on a real RabbitMQ and a real Redis, nginx in front."""
    with Cluster(nodes=3, relays=2) as cluster:
        cluster.check()
        yield cluster


async def wait_for_connections(cluster: Cluster, expected: int) -> list[Gateway]:
    """Wait until the nodes have this many client connections together, and return the node of each."""

    def holders() -> list[Gateway]:
        return [node for node in cluster.nodes for _ in range(connections_of(node))]

    assert await asyncio.to_thread(wait_until, lambda: len(holders()) == expected, 20)
    return await asyncio.to_thread(holders)


def connections_of(node: Gateway) -> int:
    found = re.search(r"^gateway_connections (\S+)$", httpx.get(f"{node.url}/metrics").text, re.MULTILINE)
    assert found
    return int(float(found[1]))


async def test_two_tabs_chat(cluster: Cluster, open_tab: OpenTab) -> None:
    url = f"{cluster.url}/?channel=two-tabs"
    await wait_for_connections(cluster, 0)
    ada, grace = await open_tab(url), await open_tab(url)
    holders = await wait_for_connections(cluster, 2)
    assert holders[0] is not holders[1]
    await ada.say("<b>hello</b>")
    await grace.expect_messages(["<b>hello</b>"])
    await grace.say("hello yourself")
    late = await open_tab(url)
    for tab in (ada, grace, late):
        await tab.expect_messages(["<b>hello</b>", "hello yourself"])
        assert await tab.offsets() == [1, 2]


async def test_tab_misses_nothing_while_it_is_away(browser: Browser, cluster: Cluster, open_tab: OpenTab) -> None:
    """Its node is killed, and its clock stands still until the other tab has said what it has to say."""
    url = f"{cluster.url}/?channel=away"
    await wait_for_connections(cluster, 0)
    context = await browser.new_context()
    await context.clock.install()
    away = await open_tab(url, context=context)
    (node,) = await wait_for_connections(cluster, 1)
    other = await open_tab(url)
    texts = ["from away", "from the other"]
    await away.say(texts[0])
    await other.expect_messages(texts[:1])
    await other.say(texts[1])
    await away.expect_messages(texts)
    client = await away.client.inner_text()

    await away.stop_clock()
    try:
        await asyncio.to_thread(node.kill)
        await away.expect_phase("waiting")
        texts += [f"while away {number}" for number in range(10)]
        for text in texts[2:]:
            await other.say(text)
        await other.expect_messages(texts)
        await away.expect_messages(texts[:2])
        await context.clock.resume()
        await away.expect_messages(texts)
    finally:
        await asyncio.to_thread(node.start)

    await away.expect_phase("connected")
    await expect(away.client).not_to_have_text(client)
    await expect(away.notices).to_have_count(0)
    await away.say("back")
    for tab in (away, other):
        await tab.expect_messages([*texts, "back"])
        assert await tab.offsets() == list(range(1, 14))


async def test_tab_misses_nothing_in_a_stream(cluster: Cluster, open_tab: OpenTab) -> None:
    """Its node is killed while the other tab goes on talking."""
    url = f"{cluster.url}/?channel=stream"
    await wait_for_connections(cluster, 0)
    listener = await open_tab(url)
    (node,) = await wait_for_connections(cluster, 1)
    talker = await open_tab(url)
    texts = [f"number {number}" for number in range(90)]
    try:
        for number, text in enumerate(texts):
            await talker.say(text)
            if number == 30:
                killing = asyncio.create_task(asyncio.to_thread(node.kill))
        await killing
        for tab in (listener, talker):
            await tab.expect_messages(texts)
            assert await tab.offsets() == list(range(1, 91))
            await expect(tab.notices).to_have_count(0)
    finally:
        await asyncio.to_thread(node.start)
    assert len(listener.sockets) > 1
    assert len(talker.sockets) == 1


async def test_all_tabs_come_back_after_every_node_was_gone(cluster: Cluster, open_tab: OpenTab) -> None:
    url = f"{cluster.url}/?channel=all-gone"
    ada, grace = await open_tab(url), await open_tab(url)
    await ada.say("before")
    await grace.expect_messages(["before"])
    for node in cluster.nodes:
        await asyncio.to_thread(node.kill)
    for node in cluster.nodes:
        await asyncio.to_thread(node.start)
    for tab in (ada, grace):
        await tab.expect_phase("connected")
    await grace.say("after")
    await ada.say("and on")
    for tab in (ada, grace):
        await tab.expect_messages(["before", "after", "and on"])
        assert await tab.offsets() == [1, 2, 3]
        await expect(tab.notices).to_have_count(0)
