"""The node and its nginx, the bystander, and two clients: a connected one, and one that has said nothing yet."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from deploy.cluster import Gateway, Nginx, free_ports

from ..clients import RawClient
from ..http import scrape
from ..waiting import until
from .guarded import CONNECT_SECONDS, ORIGIN, SECRET, Bystander, Guarded, token

CONFIG = f"""
[auth]
token_hmac_secret = "{SECRET}"
allowed_origins = ["{ORIGIN}"]

[client]
connect_timeout_seconds = {CONNECT_SECONDS}
outbox_max_bytes = 262144
channels_max = 5

[channels]
history_size = 10
history_ttl = 300
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_subscriber = true

[namespaces.readonly]
allow_subscribe_for_client = true

[namespaces.members]
allow_subscribe_for_client = true
allow_publish_for_subscriber = true

[namespaces.closed]
"""


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The node and its nginx, for all tests here."""
    folder = tmp_path_factory.mktemp("guarded")
    config = folder / "gateway.toml"
    config.write_text(CONFIG)
    node_port, nginx_port = free_ports(2)
    node = Gateway("node", "serve", folder=folder, config=config, port=node_port, settings={})
    with node, Nginx(folder, port=nginx_port, nodes=[node_port]) as nginx:
        pid = node.pid
        yield Guarded(node, nginx)
        assert (node.is_running, node.pid) == (True, pid)
    assert node.exit_code == 0


@pytest.fixture(autouse=True)
async def bystander(guarded: Guarded) -> AsyncIterator[Bystander]:
    """Another client on the node, that must notice nothing. Afterwards nothing is left of the others."""
    log_size = guarded.node.log.stat().st_size
    async with RawClient.connected(guarded.url, token()) as client:
        bystander = Bystander(client)
        task = asyncio.create_task(bystander.run())
        await until(lambda: task.done() or bystander.exchanges > 2, "the bystander publishes and receives")
        yield bystander
        before = bystander.exchanges
        await until(lambda: task.done() or bystander.exchanges > before + 2, "the bystander goes on")
        if task.done():
            task.result()
        task.cancel()

        async def is_alone() -> bool:
            metrics = await scrape(guarded.node.url)
            return metrics.value("gateway_connections") == metrics.value("gateway_subscriptions") == 1

        await until(is_alone, "only the bystander is left")
    log = guarded.node.log.read_bytes()[log_size:]
    assert b"Traceback" not in log  # what a client can cause, at the rate it likes, is a line of the log
    assert b"eyJ" not in log  # how every token begins


@pytest.fixture
async def client(guarded: Guarded) -> AsyncIterator[RawClient]:
    """A connected client."""
    async with RawClient.connected(guarded.url, token()) as client:
        yield client


@pytest.fixture
async def stranger(guarded: Guarded) -> AsyncIterator[RawClient]:
    """A client that has said nothing yet."""
    async with RawClient.open(guarded.url) as client:
        yield client
