"""create_app wires a node: with the engine it is given, or with its own; page and paths as set."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

from broker.engine import Engine
from broker.memory import MemoryRelayQueue, MemoryStreams
from gateway.app import SOCKET_PATHS, Node, create_app, create_relay_app
from gateway.lifecycle import Lifecycle, Phase
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


AWAY = EngineSettings(
    redis_url="redis://127.0.0.1:1/0",  # nobody listens there
    rabbitmq_url="amqp://guest:guest@127.0.0.1:1/",
    reconnect_max_seconds=0.05,
)


@pytest.mark.parametrize("create", [create_app, create_relay_app], ids=["node", "relay"])
async def test_process_whose_servers_are_away_is_alive_but_not_ready_and_ends(
    create: Callable[[Settings], Starlette],
) -> None:
    before = asyncio.all_tasks()
    app = create(Settings(engine=AWAY))
    async with app.router.lifespan_context(app):
        lifecycle: Lifecycle = app.state.node.lifecycle if create is create_app else app.state.lifecycle
        await turns(50)
        assert lifecycle.report() == {
            "ready": False, "phase": "serving", "peers": {"redis": False, "rabbitmq": False}, "failed": None,
        }  # fmt: skip
        assert lifecycle.is_alive
    assert asyncio.all_tasks() == before


def test_every_node_has_a_name_of_its_own() -> None:
    assert len({Node(Settings()).name for _ in range(100)}) == 100
