"""Wires a process together: the one place that knows all parts."""

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Literal
from uuid import uuid4

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from broker.engine import Engine, EngineConfig, open_engine
from broker.envelope import Retention
from broker.ports import Observer
from broker.relay import Relay
from gateway.api import health_routes, page_routes
from gateway.auth import Authenticator
from gateway.channels import Channels
from gateway.hub import Hub
from gateway.lifecycle import Lifecycle, Phase, Supervisor
from gateway.metrics import NodeMetrics, RelayMetrics
from gateway.publisher import Publisher
from gateway.session import Services
from gateway.settings import Settings
from gateway.timers import TimerWheel
from gateway.transports.websocket import WebSocketTransport

SOCKET_PATHS = ("/connection/websocket", "/socket")


class Node:
    """The parts of a node, opened with its app."""

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self.name = uuid4().hex[:12]
        self.lifecycle = Lifecycle()
        self.metrics = NodeMetrics()
        self.publisher: Publisher | None = None
        self.transport: WebSocketTransport | None = None
        self._engine = engine

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Open engine and parts; the node serves until the context ends."""
        settings, metrics = self.settings, self.metrics
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(Supervisor(self.lifecycle))
            engine = self._engine
            if engine is None:
                engine = await stack.enter_async_context(
                    _open_engine(settings, "node", metrics.reconnected, supervisor)
                )
            self.lifecycle.peers = engine.peers
            timers = TimerWheel(time.monotonic)
            # Half an outbox: a recovery must not be what makes a client slow.
            recovery_max_bytes = settings.client.outbox_max_bytes // 2
            hub = Hub(engine.streams, timers, settings.hub, metrics, recovery_max_bytes=recovery_max_bytes)
            self.publisher = Publisher(self.name, engine.queue, engine.streams, settings.publisher, metrics)
            services = Services(
                node=self.name,
                hub=hub,
                streams=engine.streams,
                publisher=self.publisher,
                channels=_channels(settings),
                authenticator=_authenticator(settings),
                timers=timers,
                metrics=metrics,
                settings=settings.client,
            )
            self.transport = WebSocketTransport(
                services,
                self.lifecycle,
                allowed_origins=settings.auth.allowed_origins,
                max_connections=settings.server.max_connections,
            )
            for work in (timers.run(), hub.run(), self.publisher.run()):
                supervisor.start(work)
            if engine.is_embedded:
                relay = Relay(
                    engine.queue,
                    engine.streams,
                    observer=RelayMetrics(),
                    rebalance_seconds=settings.relay.rebalance_seconds,
                )
                supervisor.start(relay.run())
            self.lifecycle.phase = Phase.SERVING
            yield


def create_app(settings: Settings, *, engine: Engine | None = None) -> Starlette:
    """Return the ASGI app of a node. `app.state.node` is the Node; an `engine` already open may be given."""
    node = Node(settings, engine)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with node.open():
            yield

    async def serve(websocket: WebSocket) -> None:
        assert node.transport is not None
        await node.transport.serve(websocket)

    async def not_found(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("Not Found", 404))

    sockets = [WebSocketRoute(path, serve) for path in SOCKET_PATHS]
    routes = [*sockets, WebSocketRoute("/{path:path}", not_found), *health_routes(node.lifecycle, node.metrics)]
    if settings.server.page:
        routes += page_routes()
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.node = node
    return app


def create_relay_app(settings: Settings) -> Starlette:
    """Return the ASGI app of a relay worker: it relays while it is open, and tells how it is."""
    lifecycle, metrics = Lifecycle(), RelayMetrics()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with (
            Supervisor(lifecycle) as supervisor,
            _open_engine(settings, "relay", metrics.reconnected, supervisor) as engine,
        ):
            lifecycle.peers = engine.peers
            relay = Relay(
                engine.queue,
                engine.streams,
                observer=metrics,
                rebalance_seconds=settings.relay.rebalance_seconds,
            )
            supervisor.start(relay.run())
            lifecycle.phase = Phase.SERVING
            yield

    app = Starlette(routes=health_routes(lifecycle, metrics), lifespan=lifespan)
    app.state.lifecycle = lifecycle
    return app


def _open_engine(
    settings: Settings, role: Literal["node", "relay"], observer: Observer, supervisor: Supervisor
) -> AbstractAsyncContextManager[Engine]:
    engine, relay = settings.engine, settings.relay
    config = EngineConfig(
        redis_url=engine.redis_url.get_secret_value(),
        rabbitmq_url=engine.rabbitmq_url.get_secret_value(),
        key_prefix=engine.key_prefix,
        shards=engine.shards,
        timeout=engine.timeout_seconds,
        reconnect_max=engine.reconnect_max_seconds,
        redis_connections_max=engine.redis_connections_max,
        heartbeat=engine.heartbeat_seconds,
        queue_max_bytes=engine.queue_max_bytes,
        dead_letters_max_bytes=engine.dead_letters_max_bytes,
        position_ttl=engine.position_ttl_seconds,
        prefetch=relay.prefetch_batches,
        delivery_limit=relay.delivery_limit,
    )
    return open_engine(config, role=role, observer=observer, start=supervisor.start)


def _channels(settings: Settings) -> Channels:
    window = Retention(settings.hub.repair_window_publications, settings.hub.repair_window_seconds)
    return Channels(
        settings.channels,
        settings.namespaces,
        name_max_bytes=settings.client.channel_name_max_bytes,
        repair_window=window,
    )


def _authenticator(settings: Settings) -> Authenticator:
    return Authenticator(
        settings.auth.token_hmac_secret.get_secret_value(),
        allow_anonymous=settings.auth.allow_anonymous,
        token_max_bytes=settings.auth.token_max_bytes,
        clock=time.time,
    )
