"""What we rely on in uvicorn, pinned: it may change with a version."""

import ast
import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect

from gateway.transports.frames import WRITER_EXTENSION, PreparedFramesProtocol
from tests.unit.servers import cut_off, node_settings, running_node
from tests.unit.waiting import BOUND_SECONDS, eventually

WRITER = {"write", "buffered", "close"}
OURS = {name for name in vars(PreparedFramesProtocol) if not name.startswith("__")}
METHODS = {name for name in OURS if inspect.isfunction(vars(PreparedFramesProtocol)[name])}
OVERRIDDEN = {name for name in METHODS - WRITER if not name.startswith("_")}
OUR_OWN = OURS - OVERRIDDEN


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_uvicorn_has_the_methods_that_are_overridden(name: str) -> None:
    theirs, ours = getattr(WebSocketsSansIOProtocol, name), getattr(PreparedFramesProtocol, name)
    assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)


@pytest.mark.parametrize("name", sorted(OUR_OWN))
def test_uvicorn_has_no_use_of_the_names_that_are_ours(name: str) -> None:
    assert not hasattr(WebSocketsSansIOProtocol, name)
    assert name not in attributes_of_self(WebSocketsSansIOProtocol)


async def test_uvicorn_has_the_attributes_that_are_relied_on() -> None:
    settings = node_settings()
    async with running_node(settings, has_prepared_frames=False) as node, node.client():
        (protocol,) = node.server.server_state.connections
        relied_on = attributes_of_self(PreparedFramesProtocol) - OUR_OWN
        assert {"close_sent", "conn", "queue", "read_paused", "transport", "writable"} <= relied_on
        assert [name for name in sorted(relied_on) if not hasattr(protocol, name)] == []


def attributes_of_self(kind: type) -> set[str]:
    """The names that a class asks of itself, in its source."""
    nodes = ast.walk(ast.parse(inspect.getsource(kind)))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


async def test_uvicorn_offers_the_writer_to_the_app() -> None:
    async with running_node(node_settings()) as node, node.client():
        (protocol,) = node.sockets
        extensions: Mapping[str, object] = protocol.scope["extensions"] or {}
        assert extensions[WRITER_EXTENSION] is protocol


Receive = Callable[[], Any]


@asynccontextmanager
async def plain_server(app: Any) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """An ASGI app of a few lines on uvicorn as it comes, but for the signals; the server and its address."""
    config = uvicorn.Config(app, port=0, ws="websockets-sansio", lifespan="on", log_config=None, ws_ping_interval=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    try:
        await eventually(lambda: server.started or task.done())
        yield server, f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        async with asyncio.timeout(BOUND_SECONDS):
            await task
    finally:
        await cut_off(server, task)


async def test_uvicorn_closes_sockets_with_1012_before_the_lifespan_hears_of_the_end() -> None:
    # Why GatewayServer drains first: in the lifespan it is too late.
    events: list[str] = []

    async def app(scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            events.append("lifespan ends")
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            events.append(f"{message['type']} {message['code']}")

    async with plain_server(app) as (server, url), connect(url, proxy=None, ping_interval=None) as websocket:
        server.should_exit = True
        await websocket.wait_closed()
        assert websocket.close_code == 1012
        await eventually(lambda: len(events) == 2)
    assert events == ["websocket.disconnect 1012", "lifespan ends"]


async def test_uvicorn_does_not_read_on_until_the_app_receives() -> None:
    # Backpressure for free: a session that waits is a client that is not read.
    may_receive, received = asyncio.Event(), list[str]()

    async def app(scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        await may_receive.wait()
        while (message := await receive())["type"] == "websocket.receive":
            received.append(message["text"])

    options: dict[str, Any] = {"proxy": None, "ping_interval": None, "compression": None}
    async with plain_server(app) as (server, url), connect(url, **options) as websocket:
        sending = asyncio.create_task(send_all(websocket, ["x" * 500_000] * 20))
        (protocol,) = server.server_state.connections
        assert isinstance(protocol, WebSocketsSansIOProtocol)
        await eventually(lambda: protocol.read_paused)
        assert not protocol.transport.is_reading()
        assert protocol.queue.qsize() == 1
        may_receive.set()
        await eventually(lambda: len(received) == 20)
        await sending


async def send_all(websocket: ClientConnection, texts: list[str]) -> None:
    for text in texts:
        await websocket.send(text)
