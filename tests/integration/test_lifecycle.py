"""Parts of the cluster are stopped in good order: nobody misses anything, and every exit code is 0."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack

import pytest

from deploy.cluster import Cluster, free_ports
from deploy.cluster.environment import ROOT, inherited

from .clients import Closed, RawClient
from .conftest import DRAIN_SECONDS
from .http import fullest_node, http_client, status_of
from .sdks import Client
from .traffic import Traffic, finished
from .waiting import until

pytestmark = pytest.mark.servers

PATHS = ("/health", "/ready")


async def test_node_drained(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    node = await fullest_node(cluster)
    node.terminate()

    async def is_unready() -> bool:
        return await status_of(f"{node.url}/ready") == 503

    await until(is_unready, "unready")
    assert not any(client.interruptions for client in clients)  # at once: no client has been closed so far
    assert await status_of(f"{node.url}/health") == 200

    assert await asyncio.to_thread(node.wait_ended, 30.0) == 0
    await finished(traffic)
    moved = [client for client in clients if client.interruptions]
    assert 2 <= len(moved) < len(clients)
    for client in moved:
        assert [ended.code for ended in client.interruptions] == [3001]
        assert all(times[-1].recovered for times in client.subscribed.values())


async def test_clients_are_closed_over_the_drain_time(cluster: Cluster) -> None:
    node, times = cluster.nodes[0], []

    async def close_of(client: RawClient) -> Closed:
        closed = await client.closed()
        times.append(time.monotonic())
        return closed

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient.connected(node.ws_url)) for _ in range(20)]
        closes = [asyncio.create_task(close_of(client)) for client in clients]
        node.terminate()
        assert {(await close).code for close in closes} == {3001}
    assert times[-1] - times[0] > DRAIN_SECONDS / 2
    assert await asyncio.to_thread(node.wait_ended, 30.0) == 0


async def test_draining_node_takes_no_clients(cluster: Cluster) -> None:
    node, *others = cluster.nodes
    async with RawClient.connected(node.ws_url) as client:
        node.terminate()
        for _ in range(9):  # nginx passes the draining node over
            async with RawClient.connected(cluster.ws_url):
                pass
        assert (await client.closed()).code == 3001
    assert await asyncio.to_thread(node.wait_ended, 30.0) == 0
    assert all(other.is_running for other in others)


async def test_relays_stopped(cluster: Cluster, clients: list[Client], traffic: Traffic) -> None:
    for relay in cluster.relays:
        assert await asyncio.to_thread(relay.stop) == 0
        await traffic.flows()
        await asyncio.to_thread(relay.start)
    await finished(traffic)
    assert not any(client.interruptions for client in clients)


@pytest.mark.parametrize("name", ["rabbitmq", "redis"])
async def test_ready_without_a_peer(cluster: Cluster, name: str) -> None:
    processes = [*cluster.nodes, *cluster.relays]
    server = {"rabbitmq": cluster.rabbitmq, "redis": cluster.redis}[name]

    async def statuses(path: str) -> set[int | None]:
        return {await status_of(f"{process.url}{path}") for process in processes}

    async def none_is_ready() -> bool:
        return await statuses("/ready") == {503}

    async def all_are_ready() -> bool:
        return await statuses("/ready") == {200}

    assert await all_are_ready()
    sizes = {process: process.log.stat().st_size for process in processes}
    await asyncio.to_thread(server.kill)
    await until(none_is_ready, f"nobody is ready without {name}")
    async with http_client() as client:
        report = (await client.get(f"{cluster.nodes[0].url}/ready")).json()
    assert report["peers"] == {"redis": name != "redis", "rabbitmq": name != "rabbitmq"}
    assert await statuses("/health") == {200}  # no reason to restart them
    await asyncio.to_thread(server.start)
    await until(all_are_ready, f"all are ready with {name}")
    await asyncio.to_thread(cluster.check)

    for process, size in sizes.items():  # log.format is json
        lines = process.log.read_bytes()[size:].splitlines()
        assert lines
        assert [line for line in lines if not is_event(line)] == []


def is_event(line: bytes) -> bool:
    """Whether a line of a log is one event."""
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


async def test_stops_and_starts_without_its_peers(cluster: Cluster, channel: str) -> None:
    node, relay = cluster.nodes[0], cluster.relays[0]
    async with RawClient.connected(node.ws_url) as client:
        assert "subscribe" in await client.ask("subscribe", channel=channel)
        for server in (cluster.redis, cluster.rabbitmq):
            await asyncio.to_thread(server.kill)
        await client.say({"id": 99, "publish": {"channel": channel, "data": "into the void"}})
        for process in (node, relay):
            process.terminate()
        assert (await client.closed()).code == 3001
    for process in (node, relay):
        assert await asyncio.to_thread(process.wait_ended, 40.0) == 0
        process.spawn()

    async def is_alive_and_unready() -> bool:
        answers = [await status_of(f"{process.url}{path}") for process in (node, relay) for path in PATHS]
        return answers == [200, 503, 200, 503]

    await until(is_alive_and_unready, "alive, and not ready")
    for server in (cluster.redis, cluster.rabbitmq):
        await asyncio.to_thread(server.start)
    for process in (node, relay):
        await asyncio.to_thread(process.wait_answers)
    await asyncio.to_thread(cluster.check)


async def test_drain_does_not_wait_for_clients_that_hang(cluster: Cluster, channel: str) -> None:
    node = cluster.nodes[0]
    async with AsyncExitStack() as stack:
        # One that has never said a word, one that asked for a page and stayed, one that does not read any more.
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        stack.callback(writer.close)
        http = await stack.enter_async_context(http_client())
        assert (await http.get(f"{node.url}/health")).status_code == 200
        client = await stack.enter_async_context(RawClient.connected(node.ws_url, max_queue=1))
        await client.ask("subscribe", channel=channel)
        publisher = await stack.enter_async_context(RawClient.connected(cluster.nodes[1].ws_url))
        for _ in range(10):
            assert "publish" in await publisher.ask("publish", channel=channel, data="x" * 60_000)
        client.socket.transport.pause_reading()
        assert await asyncio.to_thread(node.stop) == 0
        assert await reader.read() == b""
        client.socket.transport.abort()


def make_run(port: int) -> str:
    """The shell command behind `make run`, with the Python of these tests."""
    dry_run = ["make", "--dry-run", "run", f"PORT={port}"]
    lines = subprocess.run(dry_run, cwd=ROOT, env=inherited(), check=True, capture_output=True, text=True).stdout
    (command,) = (line for line in lines.splitlines() if ".venv/bin/python -m gateway serve" in line)
    return command.replace(".venv/bin/python", sys.executable)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_make_run(number: signal.Signals, channel: str) -> None:
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_shell(
        make_run(port), cwd=ROOT, env=inherited(), stdout=PIPE, start_new_session=True
    )
    assert process.stdout
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == f"ready http://127.0.0.1:{port}\n".encode()
        async with http_client() as http:
            page = await http.get(f"http://127.0.0.1:{port}/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        for path in ("/connection/websocket", "/socket"):
            async with RawClient.connected(f"ws://127.0.0.1:{port}{path}") as client:
                await client.ask("subscribe", channel=channel)
                await client.ask("publish", channel=channel, data=path)
                push = client.pushes.pop() if client.pushes else (await client.hear())["push"]
                assert push["pub"]["data"] == path
        process.send_signal(number)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
