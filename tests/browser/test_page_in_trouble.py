"""The page when things go wrong: refusals, silence, lost connections, histories that are not whole."""

import asyncio
import json
from collections.abc import Callable

import pytest
from playwright.async_api import Browser, WebSocketRoute, expect

from .conftest import Node, OpenTab, StartNode
from .tab import Tab

pytestmark = pytest.mark.asyncio(loop_scope="package")


class Wire:
    """Stands between a tab and its node: notes what is published, and refuses or swallows it when told to.

    It can hold back what asks for history, too, and lose the connection.
    """

    def __init__(self) -> None:
        self.published: list[str] = []
        self.refuses = False
        self.swallows = False
        self.holds_history = False
        self._held: list[Callable[[], None]] = []
        self._sockets: list[WebSocketRoute] = []

    async def tap(self, tab: Tab) -> None:
        await tab.page.route_web_socket("**/connection/websocket", self._connect)

    async def cut(self) -> None:
        """Lose the connection; the tab hears nothing of why."""
        await self._sockets[-1].close(code=3000, reason="cut")

    def release(self) -> None:
        """Let the node have what was held back."""
        for forward in self._held:
            forward()

    def _connect(self, socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        self._sockets.append(socket)

        def forward(frame: str | bytes) -> None:
            command = json.loads(frame)
            if "publish" in command:
                self.published.append(command["publish"]["data"]["text"])
                if self.refuses:
                    error = {"code": 111, "message": "too many requests", "temporary": True}
                    socket.send(json.dumps({"id": command["id"], "error": error}))
                if self.refuses or self.swallows:
                    return
            if "history" in command and self.holds_history:
                self._held.append(lambda: server.send(frame))
                return
            server.send(frame)

        socket.on_message(forward)


async def test_refused_client_does_not_come_back(browser: Browser, start_node: StartNode, open_tab: OpenTab) -> None:
    node = await asyncio.to_thread(start_node, GATEWAY_AUTH__ALLOW_ANONYMOUS="false")
    context = await browser.new_context()
    await context.clock.install()
    tab = await open_tab(context=context)
    await tab.page.goto(node.url)
    await tab.expect_phase("stopped")
    await expect(tab.error).to_contain_text("invalid token (3500)")
    await context.clock.run_for("01:00:00")
    await tab.expect_phase("stopped")
    assert len(tab.sockets) == 1
    await expect(tab.send).to_be_disabled()


async def test_forbidden_channel_says_why(node: Node, open_tab: OpenTab) -> None:
    tab = await open_tab()
    await tab.page.goto(f"{node.url}/?channel=unknown:channel")
    await tab.expect_phase("stopped")
    await expect(tab.error).to_contain_text("unknown channel (102)")


async def test_refused_message_can_be_sent_again(url: str, open_tab: OpenTab) -> None:
    tab, wire = await open_tab(), Wire()
    await wire.tap(tab)
    await tab.open(url)
    wire.refuses = True
    await tab.say("once more")
    await tab.expect_fate("failed")
    await expect(tab.messages).to_contain_text("too many requests (111)")
    wire.refuses = False
    await tab.page.get_by_test_id("retry").click()
    await tab.expect_messages(["once more"])
    assert wire.published == ["once more", "once more"]


async def test_unanswered_message_fails_in_the_end(browser: Browser, url: str, open_tab: OpenTab) -> None:
    context = await browser.new_context()
    await context.clock.install()
    tab, wire = await open_tab(context=context), Wire()
    await wire.tap(tab)
    await tab.open(url)
    wire.swallows = True
    await tab.say("anyone?")
    await tab.expect_fate("pending")
    await context.clock.fast_forward("00:16")
    await tab.expect_fate("failed")
    await expect(tab.messages).to_contain_text("may still arrive")
    await tab.page.get_by_test_id("discard").click()
    await expect(tab.messages).to_have_count(0)


async def test_outcome_is_unknown_after_a_lost_connection(url: str, open_tab: OpenTab) -> None:
    tab, other, wire = await open_tab(), await open_tab(url), Wire()
    await wire.tap(tab)
    await tab.open(url)
    wire.swallows = True
    await tab.say("lost or not")
    await tab.expect_fate("pending")
    client = await tab.client.inner_text()
    await wire.cut()
    await tab.expect_fate("unknown")
    await expect(tab.messages).to_contain_text("it may have arrived, or not")
    wire.swallows = False
    await expect(tab.client).not_to_have_text(client)  # it is back, as another client
    await tab.expect_phase("connected")
    await other.say("from the other")
    await expect(tab.messages).to_have_count(2)
    assert wire.published == ["lost or not"]  # it did nothing by itself
    await tab.expect_fate("unknown")
    await tab.page.get_by_test_id("retry").click()
    for each in (tab, other):
        await each.expect_messages(["from the other", "lost or not"])


async def test_live_and_history_overlap(url: str, open_tab: OpenTab) -> None:
    other, tab, wire = await open_tab(url), await open_tab(), Wire()
    for text in ("one", "two"):
        await other.say(text)
    await other.expect_messages(["one", "two"])
    wire.holds_history = True
    await wire.tap(tab)
    await tab.open(url)
    for text in ("three", "four"):
        await other.say(text)
    await tab.expect_messages(["three", "four"])
    wire.release()
    await tab.expect_messages(["one", "two", "three", "four"])
    assert await tab.offsets() == [1, 2, 3, 4]


async def test_new_epoch_may_miss_messages(start_node: StartNode, open_tab: OpenTab) -> None:
    node = await asyncio.to_thread(start_node)
    ada, grace = await open_tab(node.url), await open_tab(node.url)
    await ada.say("before")
    for tab in (ada, grace):
        await tab.expect_messages(["before"])
    await asyncio.to_thread(node.kill)  # and with it the memory engine
    for tab in (ada, grace):
        await tab.expect_phase("waiting")
        await expect(tab.send).to_be_disabled()
    await asyncio.to_thread(node.start)
    for tab in (ada, grace):
        await tab.expect_phase("connected")
        await expect(tab.notices).to_have_text(["Messages may be missing here"])
    await grace.say("after")
    await ada.say("and on")
    for tab in (ada, grace):
        await tab.expect_messages(["before", "after", "and on"])
        assert await tab.offsets() == [1, 1, 2]
        await expect(tab.page.locator("#messages li")).to_contain_text(["before", "missing", "after", "and on"])


async def test_away_for_too_long(browser: Browser, start_node: StartNode, open_tab: OpenTab) -> None:
    """More was said meanwhile than the channel keeps: what is left is shown, with a word of warning."""
    node = await asyncio.to_thread(start_node, GATEWAY_CHANNELS__HISTORY_SIZE="3")
    context = await browser.new_context()
    await context.clock.install()
    away, other, wire = await open_tab(context=context), await open_tab(node.url), Wire()
    await wire.tap(away)
    await away.open(node.url)
    texts = [str(number) for number in range(1, 7)]
    await other.say(texts[0])
    await away.expect_messages(texts[:1])
    await away.stop_clock()
    await wire.cut()
    await away.expect_phase("waiting")
    for text in texts[1:]:
        await other.say(text)
    await other.expect_messages(texts)
    await context.clock.resume()
    await away.expect_messages(["1", "4", "5", "6"])
    assert await away.offsets() == [1, 4, 5, 6]
    await expect(away.page.locator("#messages li").nth(1)).to_have_text("Messages may be missing here")


async def test_channel_without_history(start_node: StartNode, open_tab: OpenTab) -> None:
    settings = {
        "GATEWAY_CHANNELS__HISTORY_SIZE": "0",
        "GATEWAY_CHANNELS__HISTORY_TTL": "0",
        "GATEWAY_CHANNELS__FORCE_RECOVERY": "false",
    }
    node = await asyncio.to_thread(lambda: start_node(**settings))
    tab, other, wire = await open_tab(), await open_tab(node.url), Wire()
    await wire.tap(tab)
    await tab.open(node.url)
    for text in ("same", "same"):
        await other.say(text)
    await tab.expect_messages(["same", "same"])
    await wire.cut()
    await expect(tab.notices).to_have_count(1)
    await tab.expect_phase("connected")
    await tab.say("back")
    for each in (tab, other):
        await each.expect_messages(["same", "same", "back"])
    await expect(tab.page.locator("#messages li").nth(2)).to_have_text("Messages may be missing here")
