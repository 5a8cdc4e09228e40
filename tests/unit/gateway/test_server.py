"""The server of a node: ready when it is, drains before it closes sockets, ends with 0."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from broker.engine import Engine
from gateway.lifecycle import Phase
from gateway.server import run_node, run_relay
from gateway.settings import EngineSettings, Settings
from gateway.transports.frames import PreparedFramesProtocol
from tests.unit.doubles import CommandedQueue, CommandedStreams
from tests.unit.servers import RunningNode, built, close_of, node_settings, running_node
from tests.unit.waiting import BOUND_SECONDS, eventually, turns

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def node() -> AsyncIterator[RunningNode]:
    async with running_node(node_settings()) as node:
        yield node


# Configuration.


def test_node_is_served_as_its_settings_say() -> None:
    before = PreparedFramesProtocol.close_seconds
    try:
        settings = node_settings(server={"port": 8123, "close_timeout_seconds": 3.0}, client={"frame_max_bytes": 1000})
        config = built(run_node, settings).config
        assert (config.host, config.port) == ("127.0.0.1", 8123)
        assert config.ws_max_size == 1000
        assert config.ws is PreparedFramesProtocol
        assert not config.ws_per_message_deflate
        assert config.ws_ping_interval is None
        assert config.timeout_graceful_shutdown == 5
        assert PreparedFramesProtocol.close_seconds == 3.0
    finally:
        PreparedFramesProtocol.close_seconds = before


def test_relay_serves_no_websockets() -> None:
    engine = EngineSettings(redis_url="redis://h", rabbitmq_url="amqp://h")
    config = built(run_relay, Settings(engine=engine)).config
    config.load()
    assert config.port == 9000
    assert config.ws_protocol_class is None


# Ready.


async def test_ready_is_said_on_standard_output_when_it_is_so(
    capsys: pytest.CaptureFixture[str], node: RunningNode
) -> None:
    said = ""

    def has_said_it() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "ready http" in said

    await eventually(has_said_it)
    assert f"ready http://127.0.0.1:{node.port}\n" in said
    assert (await node.get("/ready")).status_code == 200


async def test_node_is_unready_while_a_peer_is_away_and_alive(node: RunningNode) -> None:
    node.node.lifecycle.peers = lambda: {"redis": False, "rabbitmq": True}
    assert (await node.get("/ready")).status_code == 503
    assert (await node.get("/health")).status_code == 200
    async with node.client() as client:
        assert await client.ask(ping={}), "clients stay: what they cannot have is a temporary error"


# Drain.


async def test_drain_is_unready_first_then_closes_clients_with_3001_then_ends() -> None:
    async with running_node(node_settings(server={"drain_delay_seconds": 2.0})) as node:
        async with node.client("c") as first, node.client("c") as second:
            node.server.handle_exit(signal.SIGTERM, None)
            await eventually(lambda: node.node.lifecycle.phase is Phase.DRAINING)
            ready, health = await node.get("/ready"), await node.get("/health")
            assert (ready.status_code, ready.json()["phase"]) == (503, "draining")
            assert health.status_code == 200
            with pytest.raises(InvalidStatus) as refused:
                async with node.socket():
                    pass
            assert refused.value.response.status_code == 503
            assert await first.ask(publish={"channel": "c", "data": "still here"}), "clients are served until closed"
            assert await second.heard(1) == ["still here"]
            closes = [await close_of(client.websocket) for client in (first, second)]
            assert [(close.code, close.reason) for close in closes] == [(3001, "shutdown")] * 2
        async with asyncio.timeout(BOUND_SECONDS):
            await node.task
        assert node.value("gateway_disconnects_total", code="3001") == 2


async def test_node_without_clients_ends_at_once() -> None:
    async with running_node(node_settings(server={"drain_delay_seconds": 300, "drain_seconds": 300})) as node:
        await node.stop()
        assert node.task.done()


async def test_clients_are_closed_in_slices_spread_over_the_time() -> None:
    async with running_node(node_settings(server={"drain_seconds": 0.5})) as node:
        sockets = [await connect(node.url(), proxy=None, ping_interval=None) for _ in range(10)]
        await eventually(lambda: node.sessions == 10)
        remaining = [10]

        def is_over() -> bool:
            if node.sessions != remaining[-1]:
                remaining.append(node.sessions)
            return node.sessions == 0

        node.server.handle_exit(signal.SIGTERM, None)
        await eventually(is_over)
        assert remaining == [10, 8, 6, 4, 2, 0]
        await asyncio.gather(*[close_of(websocket) for websocket in sockets])


async def test_what_clients_published_is_settled_before_the_end() -> None:
    async with running_node(node_settings()) as node:
        async with node.client("c") as client:
            for number in range(50):
                await client.websocket.send(json.dumps({"id": 100 + number, "publish": {"channel": "c", "data": 1}}))
            await eventually(lambda: node.value("gateway_messages_in_total") == 52)
            await node.stop()
        assert node.value("gateway_commands_total", method="publish", result="ok") == 50


@dataclass
class SlowEngine:
    """An embedded engine whose confirms wait at a gate."""

    queue: CommandedQueue = field(default_factory=CommandedQueue)
    streams: CommandedStreams = field(default_factory=CommandedStreams)

    @property
    def engine(self) -> Engine:
        return Engine(self.streams, self.queue, dict, is_embedded=True)


async def test_client_whose_publication_is_under_way_gets_its_answer_before_the_close() -> None:
    slow = SlowEngine()
    async with running_node(node_settings(), engine=slow.engine) as node, node.client("c") as client:
        slow.queue.gate.shut()
        await client.websocket.send('{"id":99,"publish":{"channel":"c","data":1}}')
        await slow.queue.until_handed_in(1)
        node.server.handle_exit(signal.SIGTERM, None)
        await eventually(lambda: node.node.lifecycle.phase is Phase.DRAINING)
        await turns(50)
        assert node.sessions == 1
        slow.queue.gate.open()
        messages = [await client.receive()]
        while "id" not in messages[-1]:
            messages.append(await client.receive())
        assert messages[-1] == {"id": 99, "publish": {}}
        assert (await close_of(client.websocket)).code == 3001


async def test_node_ends_when_what_its_clients_published_is_confirmed_though_they_are_gone() -> None:
    slow = SlowEngine()
    async with running_node(node_settings(), engine=slow.engine) as node:
        async with node.client() as client:
            slow.queue.gate.shut()
            await client.websocket.send('{"id":99,"publish":{"channel":"c","data":1}}')
            await slow.queue.until_handed_in(1)
        await eventually(lambda: node.sessions == 0)
        node.server.handle_exit(signal.SIGTERM, None)
        await eventually(lambda: node.node.lifecycle.phase is Phase.DRAINING)
        await turns(50)
        assert not node.task.done()
        assert node.server.servers[0].is_serving(), "it has begun to shut down"
        slow.queue.gate.open()
        async with asyncio.timeout(BOUND_SECONDS):
            await node.task


async def test_what_is_never_confirmed_holds_up_the_end_for_the_shutdown_timeout_only() -> None:
    slow = SlowEngine()
    settings = node_settings(server={"shutdown_timeout_seconds": 0.1, "close_timeout_seconds": 0.1})
    async with running_node(settings, engine=slow.engine) as node, node.client() as client:
        slow.queue.gate.shut()
        await client.websocket.send('{"id":99,"publish":{"channel":"c","data":1}}')
        await slow.queue.until_handed_in(1)
        await node.stop()
        assert (await close_of(client.websocket)).code == 3001


async def test_client_that_does_not_answer_the_close_does_not_hold_up_the_end() -> None:
    async with running_node(node_settings(server={"close_timeout_seconds": 0.1})) as node, node.raw():
        await node.stop()
        assert node.task.done()


async def test_second_signal_skips_the_drain() -> None:
    settings = node_settings(server={"drain_seconds": 60.0})
    async with running_node(settings) as node, node.client(), node.client(), node.client():
        node.server.handle_exit(signal.SIGTERM, None)
        await eventually(lambda: node.node.lifecycle.phase is Phase.DRAINING)
        node.server.handle_exit(signal.SIGTERM, None)
        await eventually(node.task.done, "the second signal ended the drain")


async def test_nothing_of_the_node_runs_after_the_end() -> None:
    before = asyncio.all_tasks()
    async with running_node(node_settings()) as node:
        async with node.client("c") as client:
            await client.ask(publish={"channel": "c", "data": 1})
        await node.stop()
    await eventually(lambda: asyncio.all_tasks() <= before)
    assert node.node.lifecycle.failed is None


async def test_node_that_failed_is_unready_not_alive_and_refuses_handshakes(node: RunningNode) -> None:
    node.node.lifecycle.failed = "Hub.run"
    assert (await node.get("/ready")).status_code == 503
    assert (await node.get("/health")).status_code == 503
    with pytest.raises(InvalidStatus) as refused:
        async with node.socket():
            pass
    assert refused.value.response.status_code == 503


# The process.


async def test_process_serves_drains_on_sigterm_and_exits_with_0() -> None:
    environment = {
        **os.environ,
        "GATEWAY_SERVER__PORT": "0",
        "GATEWAY_SERVER__DRAIN_DELAY_SECONDS": "0",
        "GATEWAY_SERVER__DRAIN_SECONDS": "0",
        "GATEWAY_LOG__FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve", "--config", "deploy/config/development.toml"),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
            url = line.removeprefix("ready http://").strip()
            token = "token-nobody-may-see"
            address = f"ws://{url}/connection/websocket?{token}"
            async with connect(address, proxy=None, ping_interval=None) as websocket:
                await websocket.send('{"id":1,"connect":{}}')
                assert "connect" in json.loads(await websocket.recv())
                process.send_signal(signal.SIGTERM)
                assert (await close_of(websocket)).code == 3001
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    events = [json.loads(entry) for entry in errors.decode().splitlines() if entry.startswith("{")]
    assert {"ready", "draining", "stopped"} <= {event["event"] for event in events}
    assert token not in errors.decode()
