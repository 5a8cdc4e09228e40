"""create_app wires a node: with the engine it is given, or with its own; page and paths as set."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

from broker.engine import Engine
from broker.memory import MemoryRelayQueue, MemoryStreams
from gateway.app import SOCKET_PATHS, Node, create_app, create_relay_app
from gateway.lifecycle import Phase
from gateway.settings import EngineSettings, ServerSettings, Settings
from tests.unit.waiting import turns


def paths(app: Starlette) -> dict[str, type]:
    """Every path, and what kind of route it is."""
    return {route.path: type(route) for route in app.routes if isinstance(route, Route | WebSocketRoute)}


def test_node_serves_sockets_health_and_metrics() -> None:
    assert paths(create_app(Settings())) == {
        "/connection/websocket": WebSocketRoute,
        "/socket": WebSocketRoute,
        "/{path:path}": WebSocketRoute,  # 404
        "/health": Route,
        "/ready": Route,
        "/metrics": Route,
    }
    assert set(SOCKET_PATHS) == {"/connection/websocket", "/socket"}


def test_page_is_served_only_when_it_is_set() -> None:
    app = create_app(Settings(server=ServerSettings(page=True)))
    assert {"/", "/page.js", "/page.css"} <= set(paths(app))


def test_relay_serves_health_and_metrics_only() -> None:
    engine = EngineSettings(redis_url="redis://h", rabbitmq_url="amqp://h")
    assert set(paths(create_relay_app(Settings(engine=engine)))) == {"/health", "/ready", "/metrics"}


async def test_node_is_starting_until_it_is_open_and_then_serves() -> None:
    app = create_app(Settings())
    node: Node = app.state.node
    before = node.lifecycle.phase
    async with app.router.lifespan_context(app):
        assert (before, node.lifecycle.phase) == (Phase.STARTING, Phase.SERVING)
        assert node.lifecycle.is_ready
    assert node.lifecycle.failed is None


@pytest.mark.parametrize("is_embedded", [True, False])
async def test_node_uses_the_engine_it_is_given_and_relays_only_for_an_embedded_one(is_embedded: bool) -> None:
    queue = MemoryRelayQueue(2)
    engine = Engine(MemoryStreams(), queue, lambda: {"redis": True}, is_embedded=is_embedded)
    app = create_app(Settings(), engine=engine)
    node: Node = app.state.node
    async with app.router.lifespan_context(app):
        assert node.lifecycle.report()["peers"] == {"redis": True}
        await turns()
        assert await queue.relays() == is_embedded


def test_every_node_has_a_name_of_its_own() -> None:
    assert len({Node(Settings()).name for _ in range(100)}) == 100
