"""What the browser tests share: Chromium and its tabs, and a node as `make run` starts it."""

import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright

from deploy.cluster import Process, free_ports
from deploy.cluster.environment import ROOT, inherited

from .tab import Tab

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

OpenTab = Callable[..., Coroutine[None, None, Tab]]
StartNode = Callable[..., "Node"]


class Node(Process):
    """One node with the memory engine, as `make run` starts it: it answers when it has printed that it is ready."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        (port,) = free_ports(1)
        super().__init__(
            f"node-{port}",
            [sys.executable, "-m", "gateway", "serve", "--config", "deploy/config/development.toml"],
            url=f"http://127.0.0.1:{port}",
            folder=folder,
            env={**inherited(), **settings, "GATEWAY_SERVER__PORT": str(port)},
            cwd=ROOT,
        )

    def spawn(self) -> None:
        self.log.unlink(missing_ok=True)  # an earlier run was ready too
        super().spawn()

    def answers(self) -> bool:
        return f"ready {self.url}\n" in self.log.read_text()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, headless."""
    path = shutil.which("chromium")
    assert path is not None, "chromium is not installed; `make test` installs it on Debian"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="package")
async def open_tab(browser: Browser) -> AsyncIterator[OpenTab]:
    """Opens tabs: `await open_tab(url)` is connected; without `url` it is blank. All are closed after the test.

    The tabs are those of one browser; `context` is for one apart, whose clock the test wants to stop.
    """
    tabs: list[Tab] = []
    contexts = [await browser.new_context()]

    async def open_one(url: str | None = None, context: BrowserContext | None = None) -> Tab:
        tab = Tab(await (context or contexts[0]).new_page())
        tabs.append(tab)
        if context:
            contexts.append(context)
        if url:
            await tab.open(url)
        return tab

    yield open_one
    for context in contexts:
        await context.close()
    assert [tab.faults for tab in tabs] == [[] for _ in tabs]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Starts nodes: `await asyncio.to_thread(start_node, GATEWAY_…="…")`. All are stopped after the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Node(tmp_path, settings))


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests that do it no harm."""
    with Node(tmp_path_factory.mktemp("node"), {}) as node:
        yield node


@pytest.fixture
def url(node: Node) -> str:
    """The page at this node, in a channel where nothing was said yet."""
    return f"{node.url}/?channel={uuid4().hex}"
