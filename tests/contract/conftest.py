"""Every contract test runs on every engine: in memory, and on private servers that live as long as the test session."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import redis

from broker.ports import Streams
from deploy.cluster import RabbitMQ, Redis

from .brokers import Brokers, MemoryBrokers, ServerBrokers
from .support import Ear


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "servers: needs redis-server and rabbitmq-server on this machine")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A private Redis for all tests of this folder."""
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A private RabbitMQ for all tests of this folder."""
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def timeout() -> float:
    """How patient the brokers are, in seconds; tests of failures are less so."""
    return 10.0


@pytest.fixture(params=["memory", pytest.param("redis+rabbitmq", marks=pytest.mark.servers)])
async def brokers(request: pytest.FixtureRequest, timeout: float) -> AsyncIterator[Brokers]:
    """Each engine in turn."""
    if request.param == "memory":
        yield MemoryBrokers()
        return
    redis_url = request.getfixturevalue("redis_server").url
    rabbitmq_url = request.getfixturevalue("rabbitmq_server").url
    async with AsyncExitStack() as stack:
        yield ServerBrokers(stack, unique_prefix(), redis_url, rabbitmq_url, timeout)


@pytest.fixture
async def server_brokers(
    redis_server: Redis, rabbitmq_server: RabbitMQ, timeout: float
) -> AsyncIterator[ServerBrokers]:
    """The engine of a test that kills and freezes servers: they run again when the test is over."""
    async with AsyncExitStack() as stack:
        for server in (redis_server, rabbitmq_server):
            stack.callback(revive, server)
        yield ServerBrokers(stack, unique_prefix(), redis_server.url, rabbitmq_server.url, timeout)


@pytest.fixture
def redis_client(redis_server: Redis) -> Iterator["redis.Redis"]:
    """A blocking client of the private Redis: what it does happens before the event loop runs on."""
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
async def streams(brokers: Brokers) -> Streams:
    """The streams of one node."""
    return await brokers.streams()


@pytest.fixture
def ear(streams: Streams) -> Ear:
    """The follower of `streams`."""
    ear = Ear()
    streams.follow(ear)
    return ear


def unique_prefix() -> str:
    """A key prefix that no other test uses."""
    return f"test-{secrets.token_hex(4)}"


def revive(server: Redis | RabbitMQ) -> None:
    """Let a server that a test left frozen or dead serve again."""
    server.resume()
    if not server.is_running:
        server.start()
