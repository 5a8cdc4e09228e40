"""The uvicorn server of a node or a relay: says when it is ready, drains before it closes sockets, ends with 0."""

import asyncio
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette

from gateway.app import Node, create_app, create_relay_app
from gateway.lifecycle import Lifecycle, Phase
from gateway.settings import Settings
from gateway.transports.frames import PreparedFramesProtocol

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05


class GatewayServer(uvicorn.Server):
    """uvicorn with a drain of its own. uvicorn would close all sockets at once, before the lifespan hears of it."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, node: Node | None = None) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._node = node

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._announcement = asyncio.create_task(self._announce())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._announcement.cancel()
        self._lifecycle.phase = Phase.DRAINING
        log.info("draining")
        if self._node is not None:
            drain = asyncio.create_task(self._drain(self._node))
            while not drain.done() and not self.force_exit:
                await asyncio.wait([drain], timeout=_POLL_SECONDS)
            drain.cancel()
            self.force_exit = False  # it was about the drain: the parts are still closed in order
        await super().shutdown(sockets=sockets)
        log.info("stopped")

    async def _drain(self, node: Node) -> None:
        """Unready, wait for the balancer, close clients in slices, settle what they published."""
        settings = node.settings.server
        assert node.transport is not None
        assert node.publisher is not None
        if node.transport.sessions:
            await asyncio.sleep(settings.drain_delay_seconds)
            await node.transport.drain(settings.drain_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.shutdown_timeout_seconds):
                await node.publisher.drained()

    async def _announce(self) -> None:
        while not self._lifecycle.is_ready:  # noqa: ASYNC110 - peers are asked, they do not tell
            await asyncio.sleep(_POLL_SECONDS)
        port = self.servers[0].sockets[0].getsockname()[1]
        log.info("ready", port=port, node=self._node.name if self._node else None)
        print(f"ready http://{self.config.host}:{port}", flush=True)  # noqa: T201 - for whoever started us

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM. uvicorn raises the signal again at the end; a clean stop is no failure here."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal skips the drain."""
        self.force_exit = self.should_exit
        self.should_exit = True


def run_node(settings: Settings) -> None:
    """Serve a node until SIGINT or SIGTERM."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))  # every client is an open file
    app = create_app(settings)
    node: Node = app.state.node
    PreparedFramesProtocol.close_seconds = settings.server.close_timeout_seconds
    config = _config(
        app,
        settings.server.host,
        settings.server.port,
        ws=PreparedFramesProtocol,
        ws_max_size=settings.client.frame_max_bytes,
        ws_ping_interval=None,  # the client protocol has pings of its own
        ws_per_message_deflate=False,
        # Sockets that do not close are cut off after close_timeout_seconds; nothing waits longer than that.
        timeout_graceful_shutdown=int(settings.server.close_timeout_seconds) + 2,
    )
    GatewayServer(config, node.lifecycle, node).run()


def run_relay(settings: Settings) -> None:
    """Run a relay worker until SIGINT or SIGTERM."""
    app = create_relay_app(settings)
    config = _config(app, settings.relay.host, settings.relay.port, ws="none", timeout_graceful_shutdown=2)
    GatewayServer(config, app.state.lifecycle).run()


def _config(app: Starlette, host: str, port: int, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host,
        port,
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **options,
    )
