"""The prepared-frames protocol class, on a real server."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from websockets.frames import Opcode

from broker.engine import Engine
from gateway.outbox import Frame
from gateway.protocol.codes import SHUTDOWN
from tests.unit.doubles import CommandedQueue, CommandedStreams
from tests.unit.servers import RunningNode, clean, node_settings, running_node
from tests.unit.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_node() -> AsyncIterator[RunningNode]:
    async with running_node(node_settings()) as node:
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def node(shared_node: RunningNode) -> AsyncIterator[RunningNode]:
    """A node, to be left as it was found."""
    async with clean(shared_node) as node:
        yield node


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


async def test_answer_to_a_close_is_read_though_the_app_is_busy_with_what_the_client_said_before() -> None:
    queue = CommandedQueue()
    engine = Engine(CommandedStreams(), queue, dict, is_embedded=True)
    settings = node_settings(server={"close_timeout_seconds": 60.0}, client={"unconfirmed_max": 1})
    async with running_node(settings, engine=engine) as node, node.raw() as client:
        (protocol,) = node.sockets
        queue.gate.shut()
        commands = '{"id":1,"connect":{}}\n{"id":2,"publish":{"channel":"c","data":1}}'
        client.send(Opcode.TEXT, commands.encode())
        client.send(Opcode.TEXT, b"{}")
        await eventually(lambda: protocol.read_paused and len(queue.bodies) == 1)
        protocol.close(SHUTDOWN)
        assert (await client.receive_close()).code == 3001
        client.send(Opcode.CLOSE, (3001).to_bytes(2, "big"))
        await eventually(lambda: not node.sockets)
        queue.gate.open()


async def test_pings_of_a_client_that_does_not_read_are_not_answered_without_bound(node: RunningNode) -> None:
    async with node.raw(receive_buffer=4096) as client:
        (protocol,) = node.sockets
        node.shrink_send_buffers()

        async def flood() -> None:
            """Send pings, and return when the server has read them all: it answers the command after them."""
            before = node.value("gateway_messages_in_total")
            for _ in range(2000):
                client.send(Opcode.PING, b"x" * 125)
            client.send(Opcode.TEXT, b"{}")
            await eventually(lambda: node.value("gateway_messages_in_total") == before + 1)

        while protocol.writable.is_set():
            await flood()
        full = protocol.buffered()
        await flood()
        assert protocol.buffered() <= full
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
