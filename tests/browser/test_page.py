"""The page at `/` in a real browser, on one node: what tabs say to each other."""

import asyncio

import pytest
from playwright.async_api import WebSocket, expect

from .conftest import Node, OpenTab, StartNode

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_two_tabs_chat(node: Node, open_tab: OpenTab) -> None:
    ada, grace = await open_tab(node.url), await open_tab(node.url)
    await ada.name.fill("Ada")
    await ada.say("hello")
    await grace.expect_messages(["hello"])
    await grace.name.fill("Grace")
    await grace.input.fill("hello yourself")
    await grace.send.click()
    for tab in (ada, grace):
        await tab.expect_messages(["hello", "hello yourself"])
        assert await tab.offsets() == [1, 2]
        assert await tab.page.locator(".author").all_text_contents() == ["Ada", "Grace"]
        assert await tab.page.locator("time").count() == 2
    assert await ada.client.inner_text() != await grace.client.inner_text()


async def test_channels_are_apart(url: str, open_tab: OpenTab) -> None:
    here, there = await open_tab(url), await open_tab(f"{url}-there")
    await here.say("in here")
    await there.say("in there")
    await here.expect_messages(["in here"])
    await there.expect_messages(["in there"])
    await expect(there.page.get_by_role("heading")).to_have_text(f"{url}-there".partition("=")[2])


async def test_html_is_text(url: str, open_tab: OpenTab) -> None:
    html = """<b>bold</b><img src=x onerror="document.title='ran'"><script>document.title='ran'</script>"""
    mallory, victim = await open_tab(url), await open_tab(url)
    title = await victim.page.title()
    await mallory.name.fill("<i>Mallory</i>")
    await mallory.say(html)
    for tab in (mallory, victim):
        await tab.expect_messages([html])
        await expect(tab.page.locator(".author")).to_have_text("<i>Mallory</i>")
        assert await tab.page.locator("#messages :is(b, i, img, script)").count() == 0
        assert await tab.page.title() == title


@pytest.mark.parametrize(
    "text",
    [
        "first\nsecond\n\nfourth",
        "  \t spaces  around\t ",
        "👋 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \U0001f4a9",
        """ "double" 'single' `back` \\n \\u0041 \\ / & &amp; {}[] """,
        "\u2028 and \u2029, \u0001 and \u007f, \u202eright to left\u202c, עברית",
    ],
)
async def test_text_survives(text: str, url: str, open_tab: OpenTab) -> None:
    ada, grace = await open_tab(url), await open_tab(url)
    await ada.say(text)
    for tab in (ada, grace):
        await expect(tab.messages).to_have_attribute("data-offset", "1")
        assert await tab.texts() == [text]
    await (late := await open_tab()).open(url)
    await expect(late.messages).to_have_count(1)
    assert await late.texts() == [text]


async def test_keyboard(url: str, open_tab: OpenTab) -> None:
    tab = await open_tab(url)
    await expect(tab.input).to_be_focused()
    for key in ("a", "Shift+Enter", "b", "Enter", "Enter", "Space", "Enter"):  # nothing and blanks are not sent
        await tab.page.keyboard.press(key)
    await tab.say("c")
    await tab.expect_messages(["a b", "c"])
    assert await tab.texts() == ["a\nb", "c"]


async def test_too_long_is_not_sent(url: str, open_tab: OpenTab) -> None:
    tab = await open_tab(url)
    await tab.input.evaluate("input => { input.value = 'x'.repeat(input.maxLength + 1) }")
    await tab.input.press("Enter")
    await expect(tab.error).to_contain_text("2000 characters")
    await expect(tab.messages).to_have_count(0)
    await tab.input.fill("x" * 2000)
    await tab.input.press("Enter")
    await tab.expect_messages(["x" * 2000])
    await expect(tab.error).to_be_empty()


async def test_half_an_emoji_is_mended(url: str, open_tab: OpenTab) -> None:
    tab = await open_tab(url)
    for box in (tab.name, tab.input):
        await box.evaluate("box => { box.value = 'half \\ud83d' }")
    await tab.send.click()
    await tab.expect_messages(["half \ufffd"])
    await expect(tab.page.locator(".author")).to_have_text("half \ufffd")


async def test_history_on_opening(url: str, open_tab: OpenTab) -> None:
    ada, grace = await open_tab(url), await open_tab(url)
    texts = [f"number {number}" for number in range(60)]
    for text in texts:
        await ada.say(text)
    await grace.expect_messages(texts)
    late = await open_tab(url)
    await late.expect_messages(texts[-50:])
    assert await late.offsets() == list(range(11, 61))
    await late.say("late")
    await ada.expect_messages([*texts, "late"])


async def test_list_is_bounded(url: str, open_tab: OpenTab) -> None:
    ada, grace = await open_tab(url), await open_tab(url)
    await ada.page.evaluate(
        """() => {
            for (let number = 1; number <= 520; number++) {
                document.getElementById("input").value = `number ${number}`;
                document.getElementById("form").requestSubmit();
            }
        }"""
    )
    for tab in (ada, grace):
        await expect(tab.messages.last).to_contain_text("number 520")
        await tab.expect_messages([f"number {number}" for number in range(21, 521)])


async def test_pings_are_answered(start_node: StartNode, open_tab: OpenTab) -> None:
    settings = {"GATEWAY_CLIENT__PING_INTERVAL_SECONDS": "0.4", "GATEWAY_CLIENT__PONG_TIMEOUT_SECONDS": "0.3"}
    node = await asyncio.to_thread(lambda: start_node(**settings))
    tab = await open_tab()
    pongs = asyncio.Semaphore(0)

    def count(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: pongs.release() if frame == "{}" else None)

    tab.page.on("websocket", count)
    await tab.open(node.url)
    for _ in range(5):
        await pongs.acquire()
    await tab.say("still here")
    await tab.expect_messages(["still here"])
    assert len(tab.sockets) == 1
