"""The relay while RabbitMQ and Redis are killed, or close its connections, under traffic."""

import asyncio
from collections.abc import Callable

import pytest
import redis

from broker.envelope import encode_batch
from broker.ports import Streams
from deploy.cluster import RabbitMQ, Redis

from .brokers import RabbitQueues, ServerBrokers
from .disturb import close_connection, remember_queues
from .relaying import Log, Node, relaying
from .support import batch, eventually, everything, numbered, placed

pytestmark = pytest.mark.servers

SHARDS = 2


@pytest.fixture
def timeout() -> float:
    return 1.0


@pytest.fixture
def brokers(server_brokers: ServerBrokers) -> ServerBrokers:
    return server_brokers


@pytest.fixture
async def queues(brokers: ServerBrokers) -> RabbitQueues:
    return await brokers.queues(shards=SHARDS)


async def survives(
    brokers: ServerBrokers, streams: Streams, queues: RabbitQueues, disturb: Callable[[], None], *, times: int
) -> None:
    """Two relays serve while a node publishes and something happens to their servers: all once, and in order."""
    node, logs = Node("n", queues.publisher), [Log(), Log()]
    other = await brokers.rabbit(consumes=True)
    stopped = False

    async def publish() -> None:
        while not stopped:
            await node.publish(1)

    def committed() -> int:
        return sum(len(log.committed_batches) for log in logs)

    async with (
        relaying(queues.consumer, streams, logs[0], rebalance_seconds=0.3),
        relaying(other, await brokers.streams(), logs[1], rebalance_seconds=0.3),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = tasks.create_task(publish())
        for _ in range(times):
            goal = committed() + 20 * SHARDS
            await eventually(lambda goal=goal: committed() >= goal, within=60)
            await asyncio.to_thread(disturb)
        goal = committed() + 20 * SHARDS
        await eventually(lambda: committed() >= goal, within=60)
        stopped = True
        await publishing
        await node.all_committed(streams)


async def test_connections_closed(brokers: ServerBrokers, queues: RabbitQueues, rabbitmq_server: RabbitMQ) -> None:
    loop = asyncio.get_running_loop()

    def close() -> None:
        for link in (queues.consumer.consumer, queues.publisher.publisher):
            asyncio.run_coroutine_threadsafe(close_connection(link.connection), loop).result(10)

    await survives(brokers, await brokers.streams(), queues, close, times=5)


async def test_redis_killed(brokers: ServerBrokers, queues: RabbitQueues, redis_server: Redis) -> None:
    def kill() -> None:
        redis_server.kill()
        redis_server.start()

    await survives(brokers, await brokers.streams(), queues, kill, times=3)


async def test_redis_frozen_for_longer_than_the_timeout(
    brokers: ServerBrokers, queues: RabbitQueues, redis_server: Redis, redis_client: "redis.Redis"
) -> None:
    streams, node = await brokers.streams(), Node("n", queues.publisher)
    async with relaying(queues.consumer, streams):
        await node.publish(5)
        await node.all_committed(streams)
        redis_server.pause()
        await node.publish(5)
        await eventually(lambda: node.confirmed == 10 * SHARDS)
        with pytest.raises(Exception, match="redis"):
            await everything(streams, "a")  # lasts the timeout
        redis_server.resume()
        await node.all_committed(streams)


async def test_rabbitmq_killed(brokers: ServerBrokers, queues: RabbitQueues, rabbitmq_server: RabbitMQ) -> None:
    def kill() -> None:
        rabbitmq_server.kill()
        rabbitmq_server.start()

    await remember_queues(rabbitmq_server)
    await survives(brokers, await brokers.streams(), queues, kill, times=1)


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_a_batch_that_redis_refuses_goes_to_the_dead_letters_alone(
    brokers: ServerBrokers, queues: RabbitQueues, redis_client: "redis.Redis", place: int
) -> None:
    streams, log = await brokers.streams(), Log()
    redis_client.set(f"{brokers.prefix}:{{cwrong}}:meta", "not a hash")
    refused = encode_batch(batch(1, {"wrong": [b"x"]}, publisher="refused"))
    published = [encode_batch(batch(number, {"a": [b"%d" % number]})) for number in range(1, 5)]
    for body in [*published[:place], refused, *published[place:]]:
        await queues.publisher.publish(0, body)
    async with relaying(queues.consumer, streams, log):
        await eventually(lambda: log.dead_batches == 1 and len(log.committed_batches) >= 4)
        await queues.publisher.publish(0, encode_batch(batch(5, {"a": [b"5"]})))
        await eventually(lambda: len(log.committed_batches) >= 5)
        await eventually(brokers.dead)
    assert placed((await everything(streams, "a")).publications) == list(enumerate(numbered(5), 1))
    assert await brokers.dead() == [refused]
    assert (log.dead_batches, len(log.committed_batches)) == (1, 5)
