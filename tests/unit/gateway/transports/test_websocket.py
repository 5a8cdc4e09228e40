"""The WebSocket endpoint, over TCP, on a real server: who is admitted, what is taken, how connections end."""

import asyncio
import gc
import json
import re
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from broker.engine import Engine
from gateway.session import Session
from tests.unit.doubles import CommandedQueue, CommandedStreams
from tests.unit.servers import (
    HANDSHAKE,
    PATH,
    RawClient,
    RunningNode,
    WireClient,
    clean,
    close_of,
    files_open,
    node_settings,
    running_node,
)
from tests.unit.waiting import eventually, turns

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


@pytest_asyncio.fixture(loop_scope="module")
async def fresh_node() -> AsyncIterator[RunningNode]:
    """A node that has counted nothing yet."""
    async with running_node(node_settings()) as node:
        yield node


# Handshake.


@pytest.mark.parametrize("path", ["/connection/websocket", "/socket", "/connection/websocket?token=x"])
async def test_clients_are_served_at(node: RunningNode, path: str) -> None:
    async with node.socket(path) as websocket:
        assert "connect" in await WireClient(websocket).ask(connect={})


def without(name: str) -> list[str]:
    """The headers of a handshake but for one."""
    return [header for header in HANDSHAKE if not header.startswith(name)]


def changed(name: str, value: str) -> list[str]:
    """The headers of a handshake with one changed."""
    return [*without(name), f"{name}: {value}"]


GET = f"GET {PATH} HTTP/1.1"
HANDSHAKES: list[tuple[str, str, list[str], int]] = [
    ("another path", "GET /connection/nowhere HTTP/1.1", list(HANDSHAKE), 404),
    ("no upgrade", GET, [], 404),
    ("another upgrade", GET, changed("Upgrade", "h2c"), 404),
    ("POST", f"POST {PATH} HTTP/1.1", [*HANDSHAKE, "Content-Length: 0"], 405),
    ("HEAD", f"HEAD {PATH} HTTP/1.1", list(HANDSHAKE), 405),
    ("no key", GET, without("Sec-WebSocket-Key"), 400),
    ("a key that is none", GET, changed("Sec-WebSocket-Key", "short"), 400),
    ("no version", GET, without("Sec-WebSocket-Version"), 400),
    ("another version", GET, changed("Sec-WebSocket-Version", "8"), 400),
    ("not HTTP", "hello", [], 400),
]


@pytest.mark.parametrize(
    ("request_line", "headers", "status"), [case[1:] for case in HANDSHAKES], ids=[case[0] for case in HANDSHAKES]
)
async def test_handshake_that_is_none_is_refused(
    node: RunningNode, request_line: str, headers: list[str], status: int
) -> None:
    async with node.dialled() as client:
        assert await client.handshake(request_line, f"Host: {node.host}", *headers) == status
    assert node.sessions == 0
    async with node.client():  # and the next one is served
        assert node.sessions == 1


LARGE_HEADERS = {
    "a line past 8 KiB": ["Cookie: " + "x" * 9000],
    "more than 128 headers": [f"X-Header-{number}: x" for number in range(130)],
}


@pytest.mark.parametrize("headers", LARGE_HEADERS.values(), ids=LARGE_HEADERS.keys())
async def test_handshake_with_too_much_in_its_headers_is_refused_and_not_left_hanging(
    node: RunningNode, headers: list[str]
) -> None:
    # httptools takes them, websockets does not; uvicorn 0.54 hands them over and never hears of it.
    async with node.dialled() as client:
        assert 400 <= await client.handshake(GET, f"Host: {node.host}", *HANDSHAKE, *headers) < 500


async def test_handshake_never_finished_is_in_nobodys_way(node: RunningNode) -> None:
    async with node.dialled() as client:
        client.send_bytes(f"GET {PATH} HTTP/1.1\r\nHost: ".encode())
        async with node.client():
            assert node.sessions == 1


async def status_of(node: RunningNode, **options: object) -> int:
    """The status that a handshake is refused with."""
    with pytest.raises(InvalidStatus) as caught:
        async with node.socket(**options):  # type: ignore[arg-type]
            pass
    return caught.value.response.status_code


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://[evil"])
async def test_page_of_a_foreign_origin_is_403(node: RunningNode, origin: str) -> None:
    assert await status_of(node, origin=origin) == 403
    assert node.sessions == 0


async def test_page_of_the_own_host_is_served(node: RunningNode) -> None:
    async with node.socket(origin=f"http://{node.host}") as websocket:
        assert "connect" in await WireClient(websocket).ask(connect={})


async def test_page_of_an_allowed_origin_is_served() -> None:
    async with running_node(node_settings(auth={"allowed_origins": ["https://a.example"]})) as node:
        async with node.socket(origin="https://a.example") as websocket:
            assert "connect" in await WireClient(websocket).ask(connect={})
        assert await status_of(node, origin=f"http://{node.host}") == 403


async def test_connection_past_max_connections_is_503_until_one_ends() -> None:
    async with running_node(node_settings(server={"max_connections": 2})) as node:
        async with node.client(), node.client():
            assert await status_of(node) == 503
        await eventually(lambda: node.sessions == 0)
        async with node.client():
            assert node.sessions == 1


async def test_many_handshakes_at_once_do_not_get_past_max_connections() -> None:
    settings = node_settings(server={"max_connections": 3})
    async with running_node(settings) as node, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(node.dialled()) for _ in range(10)]
        handshakes = [client.handshake(GET, f"Host: {node.host}", *HANDSHAKE) for client in clients]
        assert sorted(await asyncio.gather(*handshakes)) == [101] * 3 + [503] * 7


# What is taken.


async def test_publication_reaches_every_subscriber(node: RunningNode) -> None:
    async with node.client("c") as first, node.client("c") as second, node.client() as speaker:
        for number in range(3):
            assert (await speaker.ask(publish={"channel": "c", "data": number}))["publish"] == {}
        assert await first.heard(3) == [0, 1, 2]
        assert await second.heard(3) == [0, 1, 2]


async def test_commands_in_one_frame_are_answered_in_one_frame(node: RunningNode) -> None:
    async with node.socket() as websocket:
        await websocket.send('{"id":1,"connect":{}}\n{"id":2,"ping":{}}\n{"id":3,"dance":{}}')
        frame = await websocket.recv()
        assert isinstance(frame, str)
        assert [json.loads(line)["id"] for line in frame.split("\n")] == [1, 2, 3]


async def test_fragmented_message_is_one_message(node: RunningNode) -> None:
    async with node.socket() as websocket:
        await websocket.send(iter(['{"id":1,"co', "nnect", '":{}}']))
        assert "connect" in json.loads(await websocket.recv())


async def test_fragment_boundary_may_split_a_character_and_hold_a_ping(node: RunningNode) -> None:
    text = '{"id":1,"connect":{"name":"é"}}'.encode()
    middle = text.index(b"\xa9")
    async with node.raw() as client:
        client.send(Opcode.TEXT, text[:middle], fin=False)
        client.send(Opcode.PING, b"in between")
        client.send(Opcode.CONT, text[middle:])
        pong, reply = await client.receive(), await client.receive()
        assert (pong.opcode, pong.data) == (Opcode.PONG, b"in between")
        assert "connect" in json.loads(bytes(reply.data))


async def test_websocket_ping_is_answered(node: RunningNode) -> None:
    async with node.client() as client, asyncio.timeout(20):
        await (await client.websocket.ping(b"hello"))
        assert await client.ask(ping={})


async def test_binary_frame_is_3506(node: RunningNode) -> None:
    async with node.client() as client:
        await client.websocket.send(b'{"id":9,"ping":{}}')
        close = await close_of(client.websocket)
    assert (close.code, close.reason) == (3506, "inappropriate protocol: send text frames")


async def test_largest_frame_is_taken(node: RunningNode) -> None:
    async with node.client("c") as client:
        head = '{"id":99,"publish":{"channel":"c","data":"'
        await client.websocket.send(head + "x" * (65_536 - len(head) - 4) + '"}}')
        (data,) = await client.heard(1)
        assert data == "x" * (65_536 - len(head) - 4)


@pytest.mark.parametrize("size", [65_537, 1_000_000, 16_000_000])
async def test_larger_frame_is_1009(node: RunningNode, size: int) -> None:
    async with node.client() as client, node.client() as other:
        sending = asyncio.create_task(client.websocket.send("x" * size))
        close = await close_of(client.websocket)
        await asyncio.gather(sending, return_exceptions=True)
        assert close.code == 1009
        assert await other.ask(ping={})


async def test_frame_that_only_claims_to_be_larger_is_1009(node: RunningNode) -> None:
    async with node.raw() as client:
        client.send_bytes(b"\x81\xff" + (2**62).to_bytes(8, "big") + b"mask")
        assert (await client.receive_close()).code == 1009


async def test_message_too_large_in_fragments_is_1009(node: RunningNode) -> None:
    async with node.raw() as client:
        client.send(Opcode.TEXT, b"x" * 40_000, fin=False)
        client.send(Opcode.CONT, b"x" * 40_000)
        assert (await client.receive_close()).code == 1009


PROTOCOL_FAULTS = [
    ("invalid UTF-8", b"\x81\x82mask" + bytes([0xFF ^ ord("m"), 0xFE ^ ord("a")]), 1007),
    ("a frame without a mask", b"\x81\x02{}", 1002),
    ("an unknown opcode", b"\x83\x80mask", 1002),
    ("a reserved bit", b"\xc1\x80mask", 1002),
    ("a continuation of nothing", b"\x80\x80mask", 1002),
    ("a ping in fragments", b"\x09\x80mask", 1002),
    ("a ping too long", b"\x89\xfe\x00\x7emask" + bytes(126), 1002),
    ("a close code of 1 byte", b"\x88\x81mask" + b"m", 1002),
    ("a close code that may not be sent", b"\x88\x82mask" + bytes([0x03 ^ ord("m"), 0xEE ^ ord("a")]), 1002),
]


@pytest.mark.parametrize(
    ("data", "code"), [fault[1:] for fault in PROTOCOL_FAULTS], ids=[fault[0] for fault in PROTOCOL_FAULTS]
)
async def test_fault_in_the_websocket_protocol_ends_the_connection(node: RunningNode, data: bytes, code: int) -> None:
    async with node.raw() as client:
        client.send_bytes(data)
        assert (await client.receive_close()).code == code
    await eventually(lambda: node.sessions == 0)
    async with node.client() as other:
        assert await other.ask(ping={})


@pytest.mark.parametrize("text", ["hello", "[]", '{"id":1,"connect":5}', '{"connect":5, nonsense', "[" * 60_000])
async def test_bad_input_is_3501_and_others_notice_nothing(node: RunningNode, text: str) -> None:
    async with node.client() as other, node.socket() as websocket:
        await websocket.send(text)
        assert (await close_of(websocket)).code == 3501
        assert await other.ask(ping={})


async def test_fault_of_ours_ends_that_connection_with_3004_and_no_other() -> None:
    streams = CommandedStreams()
    engine = Engine(streams, CommandedQueue(), dict, is_embedded=True)
    async with running_node(node_settings(), engine=engine) as node:
        async with node.client("c") as client, node.client("c") as other:
            streams.fault = ValueError("on purpose")
            await client.websocket.send('{"id":9,"history":{"channel":"c","limit":1}}')
            close = await close_of(client.websocket)
            assert (close.code, close.reason) == (3004, "internal server error")
            streams.fault = None
            await other.ask(publish={"channel": "c", "data": 1})
            assert await other.heard(1) == [1]
        assert node.value("gateway_disconnects_total", code="3004") == 1
        assert node.node.lifecycle.is_alive


# How connections end.


async def test_client_that_never_connects_is_3502() -> None:
    settings = node_settings(client={"connect_timeout_seconds": 0.05})
    async with running_node(settings) as node, node.socket() as websocket:
        close = await close_of(websocket)
    assert (close.code, close.reason) == (3502, "stale")


async def test_client_that_does_not_answer_pings_is_3012() -> None:
    limits = {"ping_interval_seconds": 0.3, "pong_timeout_seconds": 0.1}
    async with running_node(node_settings(client=limits)) as node, node.client() as client:
        close = await close_of(client.websocket)
    assert (close.code, close.reason) == (3012, "no pong")


async def test_client_that_answers_pings_stays() -> None:
    limits = {"ping_interval_seconds": 0.1, "pong_timeout_seconds": 0.09}
    async with running_node(node_settings(client=limits)) as node, node.client() as client:
        for _ in range(2):
            assert await client.receive() == {}
            await client.websocket.send("{}")
        assert "ping" in await client.ask(ping={})


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_clean_close_is_answered_and_releases_everything(fresh_node: RunningNode, code: int) -> None:
    node = fresh_node
    async with node.client("c") as client:
        assert node.value("gateway_subscriptions") == 1
        await client.websocket.close(code, "bye")
        assert client.websocket.close_code == code
    await eventually(lambda: node.sessions == 0 and not node.sockets)
    await eventually(lambda: node.value("gateway_channels") == 0)
    assert node.value("gateway_subscriptions") == 0
    assert "gateway_disconnects_total{" not in node.node.metrics.exposition().decode(), "the client closed"


async def test_connection_lost_without_a_word_releases_everything(node: RunningNode) -> None:
    async with node.client("c") as client:
        client.websocket.transport.abort()
        await eventually(lambda: node.sessions == 0 and not node.sockets)
        await eventually(lambda: node.value("gateway_channels") == 0)
    assert node.value("gateway_subscriptions") == 0


async def test_half_closed_connection_ends(node: RunningNode) -> None:
    async with node.client("c") as client:
        client.websocket.transport.write_eof()
        await eventually(lambda: node.sessions == 0 and not node.sockets)


async def test_disconnects_are_counted_by_code(fresh_node: RunningNode) -> None:
    async with fresh_node.socket() as websocket:
        await websocket.send("hello")
        await close_of(websocket)
    assert fresh_node.value("gateway_disconnects_total", code="3501") == 1


async def test_messages_in_and_out_are_counted(fresh_node: RunningNode) -> None:
    node = fresh_node
    async with node.client("c") as client:
        await client.ask(ping={})
        assert node.value("gateway_messages_in_total") == 3
        assert node.value("gateway_messages_out_total") == 3
        assert node.value("gateway_connections") == 1


# Clients that do not read.

LARGE = "x" * 60_000
ENOUGH = 30  # more than the kernel takes once its buffers are shrunk, and an outbox on top


@asynccontextmanager
async def stuck_client(node: RunningNode) -> AsyncIterator[RawClient]:
    """A client that subscribes to `c`, and from then on reads nothing unless it is told to."""
    async with node.raw(receive_buffer=4096) as client:
        client.say(id=1, connect={})
        await client.receive()
        client.say(id=2, subscribe={"channel": "c"})
        await client.receive()
        node.shrink_send_buffers()
        yield client


async def publish_much(node: RunningNode) -> None:
    """Publish in `c` and see that a client that reads gets all of it."""
    async with node.client("c") as reader, node.client() as speaker:
        hearing = asyncio.create_task(reader.heard(ENOUGH))
        for number in range(ENOUGH):
            assert "publish" in await speaker.ask(publish={"channel": "c", "data": f"{number} {LARGE}"})
        assert [str(text).split(" ")[0] for text in await hearing] == [str(number) for number in range(ENOUGH)]


async def test_client_that_never_reads_is_3008_when_it_reads_again_and_others_get_everything() -> None:
    settings = node_settings(server={"close_timeout_seconds": 60.0}, client={"outbox_max_bytes": 100_000})
    async with running_node(settings) as node, stuck_client(node) as stuck:
        await publish_much(node)
        await eventually(lambda: node.value("gateway_slow_disconnects_total") == 1)
        await eventually(lambda: node.sessions == 0)
        offsets: list[int] = []
        while (frame := await stuck.receive()).opcode is Opcode.TEXT:
            offsets += [int(offset) for offset in re.findall(rb'"offset":(\d+)', frame.data)]
        assert frame.opcode is Opcode.CLOSE
        assert frame.data[:2] == (3008).to_bytes(2, "big")
        assert offsets == list(range(1, len(offsets) + 1)), "it saw a hole before the end"


async def test_client_that_never_reads_again_is_cut_off() -> None:
    settings = node_settings(server={"close_timeout_seconds": 0.1}, client={"outbox_max_bytes": 100_000})
    async with running_node(settings) as node, stuck_client(node):
        await publish_much(node)
        await eventually(lambda: node.value("gateway_disconnects_total", code="3008") == 1)
        await eventually(lambda: not node.sockets, "its socket is gone")


async def test_outbox_metric_shows_what_a_client_has_not_taken() -> None:
    async with running_node(node_settings(client={"outbox_max_bytes": 10_000_000})) as node:
        async with stuck_client(node):
            await publish_much(node)
            assert node.value("gateway_outbox_bytes") > 60_000
        await eventually(lambda: node.sessions == 0)
        assert node.value("gateway_outbox_bytes") == 0


# No trace.


async def open_and_drop(node: RunningNode, number: int, sessions: "weakref.WeakSet[Session]") -> None:
    """One client in a channel of its own and a shared one; every second is gone without a word."""
    async with node.raw() as client:
        subscribe = (
            f'{{"id":2,"subscribe":{{"channel":"own {number}"}}}}\n{{"id":3,"subscribe":{{"channel":"shared"}}}}'
        )
        client.send(Opcode.TEXT, f'{{"id":1,"connect":{{}}}}\n{subscribe}'.encode())
        await client.receive()
        assert node.node.transport is not None
        sessions.update(node.node.transport.sessions)
        if number % 2 == 0:
            client.send(Opcode.CLOSE, (1000).to_bytes(2, "big"))
            assert (await client.receive_close()).code == 1000


async def test_a_thousand_connections_opened_and_dropped_leave_no_trace(fresh_node: RunningNode) -> None:
    node = fresh_node
    await open_and_drop(node, -1, weakref.WeakSet())
    await eventually(lambda: node.sessions == 0 and not node.server.server_state.connections)
    await turns(50)
    tasks, files = len(asyncio.all_tasks()), files_open()
    sessions: weakref.WeakSet[Session] = weakref.WeakSet()
    for start in range(0, 1000, 50):
        await asyncio.gather(*[open_and_drop(node, number, sessions) for number in range(start, start + 50)])
    assert node.value("gateway_commands_total", method="connect", result="ok") == 1001

    await eventually(lambda: node.sessions == 0, "sessions are gone")
    await eventually(lambda: not node.server.server_state.connections, "sockets are gone")
    await eventually(lambda: not node.server.server_state.tasks, "the tasks of their endpoints are gone")
    await eventually(lambda: node.value("gateway_channels") == 0, "channels are left")
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "tasks are gone")
    await eventually(lambda: files_open() <= files, "files are closed")
    assert node.value("gateway_subscriptions") == 0

    def nothing_holds_a_session() -> bool:  # neither timers nor the hub, the publisher, the flusher
        gc.collect()
        return len(sessions) == 0

    await eventually(nothing_holds_a_session, "sessions are freed")
