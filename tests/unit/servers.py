"""Real servers on free ports of 127.0.0.1, in the event loop of the test, and clients that reach them over TCP."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import httpx
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from broker.engine import Engine
from gateway.app import Node, create_app
from gateway.server import GatewayServer, run_node
from gateway.settings import AuthSettings, ClientSettings, HubSettings, NamespaceSettings, ServerSettings, Settings
from gateway.transports.frames import PreparedFramesProtocol
from tests.unit.doubles import Json
from tests.unit.waiting import BOUND_SECONDS, eventually

PATH = "/connection/websocket"
OPEN = NamespaceSettings(
    history_size=100,
    history_ttl=300.0,
    force_recovery=True,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_history_for_subscriber=True,
)


def node_settings(
    *,
    server: Json | None = None,
    client: Json | None = None,
    auth: Json | None = None,
) -> Settings:
    """Settings of a node that lets anyone in, on a free port, and stops at once."""
    return Settings(
        server=ServerSettings.model_validate(
            {"port": 0, "drain_delay_seconds": 0, "drain_seconds": 0, **(server or {})}
        ),
        client=ClientSettings.model_validate(client or {}),
        auth=AuthSettings.model_validate({"allow_anonymous": True, **(auth or {})}),
        hub=HubSettings(linger_seconds=0),
        channels=OPEN,
    )


def built(run: Callable[[Settings], None], settings: Settings, engine: Engine | None = None) -> GatewayServer:
    """The server that `run_node` or `run_relay` would run, configured by them and by nobody else; on a given engine."""
    servers: list[GatewayServer] = []

    def keep(server: GatewayServer, sockets: object = None) -> None:
        servers.append(server)

    create = partial(create_app, engine=engine)
    with mock.patch.object(GatewayServer, "run", keep), mock.patch("gateway.server.create_app", create):
        run(settings)
    (server,) = servers
    return server


@dataclass
class RunningNode:
    """A node that serves."""

    server: GatewayServer
    node: Node
    task: "asyncio.Task[None]"
    port: int

    @property
    def host(self) -> str:
        """What clients say in the Host header."""
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = PATH, scheme: str = "ws") -> str:
        return f"{scheme}://{self.host}{path}"

    def value(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        return self.node.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def sessions(self) -> int:
        assert self.node.transport is not None
        return len(self.node.transport.sessions)

    @property
    def sockets(self) -> set[PreparedFramesProtocol]:
        """The server's ends of all WebSockets."""
        return {one for one in self.server.server_state.connections if isinstance(one, PreparedFramesProtocol)}

    def shrink_send_buffers(self) -> None:
        """Let the kernel keep little for clients that do not read, instead of megabytes."""
        for protocol in self.sockets:
            protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(self.url(path, "http"), headers=headers, timeout=BOUND_SECONDS)

    @asynccontextmanager
    async def socket(self, path: str = PATH, **options: object) -> AsyncIterator[ClientConnection]:
        """An open WebSocket of the `websockets` client."""
        defaults: dict[str, object] = {"compression": None, "ping_interval": None, "max_size": None, "proxy": None}
        async with connect(self.url(path), **defaults | options) as websocket:  # type: ignore[arg-type]
            yield websocket

    @asynccontextmanager
    async def client(self, *channels: str) -> AsyncIterator["WireClient"]:
        """A client that has connected and subscribed."""
        async with self.socket() as websocket:
            client = WireClient(websocket)
            await client.ask(connect={})
            for channel in channels:
                assert "subscribe" in await client.ask(subscribe={"channel": channel})
            yield client

    @asynccontextmanager
    async def dialled(self, receive_buffer: int | None = None) -> AsyncIterator["RawClient"]:
        """A TCP connection that says nothing. `receive_buffer` is what the kernel takes for a client that reads not."""
        end = socket.socket()
        end.setblocking(False)
        if receive_buffer is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self.port))
        # asyncio stops to read from the kernel at twice the limit.
        reader, writer = await asyncio.open_connection(sock=end, limit=1024)
        try:
            yield RawClient(reader, writer)
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def raw(self, receive_buffer: int | None = None) -> AsyncIterator["RawClient"]:
        """A WebSocket made of bytes."""
        async with self.dialled(receive_buffer) as client:
            assert await client.handshake(f"GET {PATH} HTTP/1.1", f"Host: {self.host}", *HANDSHAKE) == 101
            yield client

    async def stop(self) -> None:
        """Stop as SIGTERM does, and wait for the end."""
        self.server.should_exit = True
        async with asyncio.timeout(BOUND_SECONDS):
            await self.task


@asynccontextmanager
async def clean(node: RunningNode) -> AsyncIterator[RunningNode]:
    """A node that tests share: each must leave it without sessions, sockets, channels."""
    yield node
    await eventually(lambda: node.sessions == 0, "the sessions of this test have ended")
    await eventually(lambda: not node.server.server_state.connections, "its sockets are closed")
    await eventually(lambda: not node.server.server_state.tasks, "the tasks of their endpoints have ended")
    await eventually(lambda: node.value("gateway_channels") == 0, "its channels are left")
    assert node.value("gateway_subscriptions") == 0
    assert node.value("gateway_outbox_bytes") == 0
    assert node.node.lifecycle.failed is None


@asynccontextmanager
async def running_node(
    settings: Settings, *, has_prepared_frames: bool = True, engine: Engine | None = None
) -> AsyncIterator[RunningNode]:
    """Run a node; without prepared frames it is served by uvicorn's own protocol class."""
    close_seconds = PreparedFramesProtocol.close_seconds
    server = built(run_node, settings, engine)
    if not has_prepared_frames:
        server.config.ws = WebSocketsSansIOProtocol
    task = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or task.done(), "the server has started")
        if task.done():
            await task
        app = server.config.app
        assert isinstance(app, Starlette)
        running = RunningNode(server, app.state.node, task, server.servers[0].sockets[0].getsockname()[1])
        yield running
        if not task.done():
            await running.stop()
    finally:
        await cut_off(server, task)
        PreparedFramesProtocol.close_seconds = close_seconds


async def cut_off(server: uvicorn.Server, task: "asyncio.Task[None]") -> None:
    """End a server that has not stopped, so that a test that failed leaves nothing behind."""
    if task.done():
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for listener in server.servers if server.started else ():
        listener.close()
    for connection in server.server_state.connections:
        connection.transport.abort()


class WireClient:
    """A client of the JSON protocol over a WebSocket."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self._last_id = 0
        self._waiting: list[Json] = []

    async def ask(self, **command: object) -> Json:
        """Send one command and return its reply; pushes that come before it are kept."""
        self._last_id += 1
        await self.websocket.send(json.dumps({"id": self._last_id, **command}))
        kept: list[Json] = []
        while (message := await self.receive()).get("id") != self._last_id:
            kept.append(message)
        self._waiting = kept + self._waiting
        return message

    async def receive(self) -> Json:
        """The next reply or push."""
        while not self._waiting:
            async with asyncio.timeout(BOUND_SECONDS):
                text = await self.websocket.recv()
            self._waiting = [json.loads(line) for line in text.split("\n")]  # type: ignore[arg-type]
        return self._waiting.pop(0)

    async def heard(self, count: int) -> list[object]:
        """The data of the next publications."""
        found: list[object] = []
        while len(found) < count:
            message = await self.receive()
            if "push" in message:
                found.append(message["push"]["pub"]["data"])
        return found


async def close_of(websocket: ClientConnection) -> Close:
    """Wait until the server closes, whatever it sends before; return its close frame."""
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                await websocket.recv()
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            raise AssertionError(f"no close frame: {closed}") from None
        return closed.rcvd


class RawClient:
    """A WebSocket client made of bytes, for what a decent library does not do. It reads only when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = StreamReader()

    async def handshake(self, *lines: str) -> int:
        """Send a request and return the status of the response."""
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(BOUND_SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ")[1])

    def send(self, opcode: Opcode, data: bytes, *, fin: bool = True) -> None:
        """Send one frame."""
        self._writer.write(Frame(opcode, data, fin).serialize(mask=True))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    def say(self, **command: object) -> None:
        """Send one command."""
        self.send(Opcode.TEXT, json.dumps(command).encode())

    async def drain(self) -> None:
        """Wait until the kernel has taken what was sent."""
        async with asyncio.timeout(BOUND_SECONDS):
            await self._writer.drain()

    async def receive(self) -> Frame:
        """The next frame. Raises EOFError or ConnectionError when there is none any more."""
        parser = Frame.parse(self._stream.read_exact, mask=False)
        while True:
            try:
                next(parser)
            except StopIteration as parsed:
                frame: Frame = parsed.value
                return frame
            async with asyncio.timeout(BOUND_SECONDS):
                data = await self._reader.read(65_536)
            if not data:
                raise EOFError
            self._stream.feed_data(data)

    async def receive_close(self) -> Close:
        """Read until the close frame."""
        while True:
            frame = await self.receive()
            if frame.opcode is Opcode.CLOSE:
                return Close.parse(frame.data)

    def abort(self) -> None:
        """Be gone without a word."""
        self._writer.transport.abort()


HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def files_open() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))
