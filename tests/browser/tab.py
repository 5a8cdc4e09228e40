"""One tab with the chat page, as its user sees it."""

from collections.abc import Sequence

from playwright.async_api import Page, WebSocket, expect

expect.set_options(timeout=20_000)  # milliseconds; a killed node takes a while to be missed


class Tab:
    """What is on the page, what its user does, and what the page said on its WebSockets.

    `faults` are uncaught errors and violations of the content security policy.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.state = page.get_by_test_id("state")
        self.client = page.get_by_test_id("client")
        self.error = page.get_by_test_id("error")
        self.name = page.get_by_test_id("name")
        self.input = page.get_by_test_id("input")
        self.send = page.get_by_test_id("send")
        self.messages = page.get_by_test_id("message")
        self.notices = page.get_by_test_id("messages").locator(".notice")
        self.faults: list[str] = []
        self.sockets: list[WebSocket] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._heed(message.text))
        page.on("websocket", lambda socket: self.sockets.append(socket))

    async def open(self, url: str) -> None:
        await self.page.goto(url)
        await self.expect_phase("connected")

    async def say(self, text: str) -> None:
        await self.input.fill(text)
        await self.input.press("Enter")
        await expect(self.input).to_have_value("")

    async def stop_clock(self) -> None:
        """Let no timer of the page ring any more, until `context.clock.resume()`; its clock must be installed."""
        now = await self.page.evaluate("Date.now()")
        await self.page.clock.pause_at(now / 1000 + 1)  # it can only be stopped in its future

    async def texts(self) -> list[str]:
        """What is shown, to the letter: `expect` would forgive white space."""
        return await self.messages.locator(".said").all_text_contents()

    async def offsets(self) -> list[int]:
        """Offsets of what is shown; 0 for what is not in the channel."""
        values = [await message.get_attribute("data-offset") for message in await self.messages.all()]
        return [int(value or 0) for value in values]

    async def expect_phase(self, phase: str) -> None:
        await expect(self.state).to_have_attribute("data-state", phase)

    async def expect_messages(self, texts: Sequence[str]) -> None:
        """Exactly these messages come to be shown, in this order, each as the channel has it."""
        await expect(self.messages.locator(".said")).to_have_text(texts)
        await expect(self.page.locator('[data-testid="message"][data-state="received"]')).to_have_count(len(texts))

    async def expect_fate(self, state: str) -> None:
        """The last message is pending, sent, received, failed or unknown."""
        await expect(self.messages.last).to_have_attribute("data-state", state)

    def _heed(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.faults.append(text)
