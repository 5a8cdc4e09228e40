"""The prepared-frames protocol class; and what it relies on in uvicorn, pinned: that may change with a version."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Opcode

from gateway.outbox import Frame
from gateway.protocol.codes import SHUTDOWN
from gateway.transports.frames import WRITER_EXTENSION, PreparedFramesProtocol
from tests.unit.servers import RunningNode, cut_off, node_settings, running_node
from tests.unit.waiting import BOUND_SECONDS, eventually

OVERRIDDEN = ["handle_connect", "handle_ping", "handle_close", "handle_parser_exception", "shutdown"]
OUR_OWN = ["write", "buffered", "close", "_abort_later", "close_seconds"]
RELIED_ON = [
    "close_sent", "close_timer", "conn", "handshake_complete", "loop", "queue", "read_paused", "transport", "writable",
]  # fmt: skip


@pytest.fixture
async def node() -> AsyncIterator[RunningNode]:
    async with running_node(node_settings()) as node:
        yield node


# What uvicorn decides.


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_uvicorn_has_the_methods_that_are_overridden(name: str) -> None:
    theirs, ours = getattr(WebSocketsSansIOProtocol, name), getattr(PreparedFramesProtocol, name)
    assert theirs is not ours
    assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)


@pytest.mark.parametrize("name", OUR_OWN)
def test_uvicorn_has_no_use_of_the_names_that_are_ours(name: str) -> None:
    assert not hasattr(WebSocketsSansIOProtocol, name)
    assert f"self.{name}" not in inspect.getsource(WebSocketsSansIOProtocol).replace("self.close_", "self.x_")


async def test_uvicorn_has_the_attributes_that_are_relied_on(node: RunningNode) -> None:
    async with node.client():
        (protocol,) = node.sockets
        assert [name for name in RELIED_ON if not hasattr(protocol, name)] == []


async def test_uvicorn_offers_the_writer_to_the_app(node: RunningNode) -> None:
    async with node.client():
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


# What the class adds.


async def test_frames_are_written_as_they_were_prepared(node: RunningNode) -> None:
    async with node.raw() as client:
        (protocol,) = node.sockets
        protocol.write(Frame(b"prepared"))
        frame = await client.receive()
        assert (frame.opcode, frame.fin, frame.data) == (Opcode.TEXT, True, b"prepared")


async def test_nothing_is_written_after_a_close(node: RunningNode) -> None:
    async with node.raw() as client:
        (protocol,) = node.sockets
        protocol.close(SHUTDOWN)
        protocol.close(SHUTDOWN)
        protocol.write(Frame(b"late"))
        frame = await client.receive()
        assert (frame.opcode, frame.data) == (Opcode.CLOSE, (3001).to_bytes(2, "big") + b"shutdown")
        client.send(Opcode.CLOSE, (3001).to_bytes(2, "big"))
        with pytest.raises((EOFError, ConnectionError)):
            await client.receive()


async def test_client_that_does_not_answer_a_close_is_cut_off() -> None:
    async with running_node(node_settings(server={"close_timeout_seconds": 0.1})) as node, node.raw():
        (protocol,) = node.sockets
        protocol.close(SHUTDOWN)
        await eventually(lambda: not node.sockets)


async def test_close_is_answered_though_the_app_is_not_receiving(node: RunningNode) -> None:
    # Reading pauses while the app is busy; for the answer to a close frame it must go on.
    async with node.raw() as client:
        (protocol,) = node.sockets
        protocol.read_paused = True
        protocol.transport.pause_reading()
        protocol.close(SHUTDOWN)
        assert (await client.receive_close()).code == 3001
        client.send(Opcode.CLOSE, (3001).to_bytes(2, "big"))
        await eventually(lambda: not node.sockets)


async def test_flood_of_pings_from_a_client_that_does_not_read_is_not_answered_without_bound(
    node: RunningNode,
) -> None:
    async with node.raw(receive_buffer=4096) as client:
        (protocol,) = node.sockets
        payload, largest = b"x" * 125, 0
        for _ in range(400):
            for _ in range(250):
                client.send(Opcode.PING, payload)
            await client.drain()
            largest = max(largest, protocol.transport.get_write_buffer_size())
        assert protocol in node.sockets
        assert not protocol.writable.is_set(), "the flood was too small to show anything"
        assert largest < 1_000_000
        async with node.client() as other:
            assert await other.ask(ping={})


RUDE_ENDS = {
    "closes": b"\x88\x82mask" + bytes([0x03 ^ ord("m"), 0xE8 ^ ord("a")]),
    "breaks the protocol": b"\x83\x80mask",
}


@pytest.mark.parametrize("end", RUDE_ENDS.values(), ids=RUDE_ENDS.keys())
async def test_client_that_ends_the_connection_and_never_reads_the_rest_is_cut_off(end: bytes) -> None:
    settings = node_settings(server={"close_timeout_seconds": 0.1})
    async with running_node(settings) as node, node.raw(receive_buffer=4096) as client:
        (protocol,) = node.sockets
        protocol.write(Frame(b"x" * 20_000_000))
        client.send_bytes(end)
        await eventually(lambda: not node.sockets)


async def test_server_that_shuts_down_says_3001_also_to_whom_the_drain_missed(node: RunningNode) -> None:
    async with node.raw() as client:
        (protocol,) = node.sockets
        protocol.shutdown()
        assert (await client.receive_close()).code == 3001
        await eventually(lambda: not node.sockets)


async def test_frames_are_not_compressed(node: RunningNode) -> None:
    async with node.socket(compression="deflate") as websocket:
        assert websocket.response is not None
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers
        await websocket.send('{"id":1,"connect":{}}')
        assert "connect" in json.loads(await websocket.recv())
