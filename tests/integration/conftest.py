"""One cluster for all tests of a session: 3 nodes, 2 relays, RabbitMQ, Redis, nginx. Who breaks it gets it mended."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from uuid import uuid4

import pytest

from deploy.cluster import Cluster
from deploy.cluster.cluster import DEVELOPMENT
from deploy.cluster.processes import wait_until

from .sdks import JS_FOLDER, SDKS, Client, Sdks
from .traffic import Traffic
from .waiting import WITHIN_SECONDS

NAMESPACES = """
[namespaces.short]  # history that is soon exceeded
history_size = 5
history_ttl = 300
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[namespaces.long]  # history that no outage of these tests exceeds
history_size = 10000
history_ttl = 300
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[namespaces.direct]
relay = "direct"
history_size = 10000
history_ttl = 300
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_subscriber = true
"""

DRAIN_SECONDS = 2.0
SHARDS = 8

COUNTED = "counted by the clients"
"""Tests record counts under this name; they are shown at the end."""

SETTINGS = {
    "GATEWAY_LOG__FORMAT": "json",
    "GATEWAY_ENGINE__SHARDS": str(SHARDS),
    "GATEWAY_SERVER__DRAIN_DELAY_SECONDS": "2",
    "GATEWAY_SERVER__DRAIN_SECONDS": str(DRAIN_SECONDS),
    "GATEWAY_SERVER__SHUTDOWN_TIMEOUT_SECONDS": "3",
    "GATEWAY_SERVER__CLOSE_TIMEOUT_SECONDS": "2",
}


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "servers: needs real servers")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the clients counted, test by test."""
    tests = [test for outcome in ("passed", "failed") for test in terminalreporter.getreports(outcome)]
    lines = [f"{test.nodeid}\n    {value}" for test in tests for name, value in test.user_properties if name == COUNTED]
    if lines:
        terminalreporter.section(COUNTED)
        terminalreporter.write_line("\n".join(sorted(lines)))


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of the session; tests take `cluster`. Its logs stay where pytest keeps temporary folders."""
    folder = tmp_path_factory.mktemp("cluster")
    config = folder / "gateway.toml"
    config.write_text(DEVELOPMENT.read_text() + NAMESPACES)
    with Cluster(nodes=3, relays=2, config=config, folder=folder, settings=SETTINGS, tls=True) as cluster:
        cluster.check()
        assert wait_until(lambda: has_queues_on_disk(cluster), WITHIN_SECONDS)
        yield cluster


def has_queues_on_disk(cluster: Cluster) -> bool:
    """Whether RabbitMQ has written its list of quorum queues to its file.

    It does so some seconds after a queue was declared. When it is killed before, RabbitMQ 3.10 starts with a queue that
    never finds its leader. No test is about that.
    """
    (names,) = cluster.folder.glob("rabbitmq/mnesia/*/quorum/*/names.dets")
    on_disk = names.read_bytes()
    return all(f"gateway.relay.{shard}".encode() in on_disk for shard in range(SHARDS))


@pytest.fixture
async def cluster(started_cluster: Cluster) -> AsyncIterator[Cluster]:
    """The cluster, whole; what a test has stopped, killed or frozen runs again after it."""
    yield started_cluster
    await asyncio.to_thread(mend, started_cluster)


def mend(cluster: Cluster) -> None:
    """Let every part of the cluster run and be ready."""
    for process in cluster.processes:
        process.resume()
        if not process.is_running:
            process.spawn()
    for process in cluster.processes:
        process.wait_answers()


@pytest.fixture(scope="session")
def javascript() -> None:
    """The JavaScript SDK is installed."""
    if not (JS_FOLDER / "node_modules" / ".package-lock.json").exists():
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=JS_FOLDER, check=True, capture_output=True)


@pytest.fixture
async def sdks(javascript: None, cluster: Cluster) -> AsyncIterator[Sdks]:
    """Makes clients of both SDKs."""
    assert cluster.certs
    async with Sdks(cluster.certs / "tls.crt") as sdks:
        yield sdks


@pytest.fixture
def channel() -> str:
    """A channel that no other test uses."""
    return f"channel-{uuid4().hex}"


@pytest.fixture
async def clients(cluster: Cluster, sdks: Sdks) -> list[Client]:
    """Clients through nginx, several on each node."""
    return [await sdks.client(sdk, cluster.ws_url) for _ in range(4) for sdk in SDKS]


@pytest.fixture
async def traffic(
    clients: list[Client], channel: str, record_property: Callable[[str, object], None]
) -> AsyncIterator[Traffic]:
    """All clients publish, and receive what all publish: through RabbitMQ, in several shards, and without it."""
    channels = [*(f"long:{channel}-{number}" for number in range(3)), f"direct:{channel}"]
    async with Traffic(clients, channels, record=partial(record_property, COUNTED)) as traffic:
        await traffic.flows()
        yield traffic
