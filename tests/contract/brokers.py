"""The engines under test, opened the way nodes and relays open them."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import aio_pika
import redis
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError

from broker.memory import MemoryRelayQueue, MemoryStreams
from broker.ports import RelayQueue, Streams
from broker.rabbitmq import RabbitRelayQueue, Topology, open_rabbit_relay_queue
from broker.redis import RedisStreams, open_redis_streams

from .support import eventually, keepers

PREFETCH = 64

Q = TypeVar("Q", bound=RelayQueue, covariant=True)


@dataclass(frozen=True)
class Queues(Generic[Q]):
    """The same queues from both ends: as a node and as a relay have them."""

    publisher: Q
    consumer: Q


RabbitQueues = Queues[RabbitRelayQueue]


class Brokers(ABC):
    """The engine of one test. What is opened here shares one state, and is closed when the test ends."""

    @abstractmethod
    async def streams(self, *, position_ttl: float = 3600.0) -> Streams:
        """The streams of one node or relay."""

    @abstractmethod
    async def queues(self, *, shards: int = 1, queue_max_bytes: int = 1 << 30) -> Queues[RelayQueue]:
        """The queues of a node and of a relay; every call of a test must say the same."""

    @abstractmethod
    async def dead(self) -> list[bytes]:
        """The bodies that are in the dead-letter queue, or were at an earlier call."""

    @abstractmethod
    async def lose(self, channel: str) -> None:
        """Lose what is stored of a channel, as a server without its data does."""


class MemoryBrokers(Brokers):
    """The memory engine: one process, so every call returns the same object."""

    def __init__(self) -> None:
        self._streams: MemoryStreams | None = None
        self._queue: MemoryRelayQueue | None = None

    async def streams(self, *, position_ttl: float = 3600.0) -> MemoryStreams:
        self._streams = self._streams or MemoryStreams(position_ttl)
        return self._streams

    async def queues(self, *, shards: int = 1, queue_max_bytes: int = 1 << 30) -> Queues[MemoryRelayQueue]:
        self._queue = self._queue or MemoryRelayQueue(shards, queue_max_bytes)
        return Queues(self._queue, self._queue)

    async def dead(self) -> list[bytes]:
        return list(self._queue.dead) if self._queue else []

    async def lose(self, channel: str) -> None:
        (await self.streams()).forget(channel)


class ServerBrokers(Brokers):
    """Redis and RabbitMQ. Tests are kept apart by their prefix; the queues are deleted in the end."""

    def __init__(self, stack: AsyncExitStack, prefix: str, redis_url: str, rabbitmq_url: str, timeout: float) -> None:
        self.prefix = prefix
        self.timeout = timeout
        self.redis_heartbeat = 5.0
        self.reconnections: list[str] = []
        """Peers whose lost connection came back, as the observer was told."""
        self._stack = stack
        self._redis_url = redis_url
        self._rabbitmq_url = rabbitmq_url
        self._topology: Topology | None = None
        self._dead: list[bytes] = []

    async def streams(self, *, position_ttl: float = 3600.0) -> RedisStreams:
        start = await self._stack.enter_async_context(keepers())
        streams = await self._stack.enter_async_context(
            open_redis_streams(
                self._redis_url,
                prefix=self.prefix,
                position_ttl=position_ttl,
                timeout=self.timeout,
                reconnect_max=0.2,
                connections_max=8,
                heartbeat=self.redis_heartbeat,
                observer=self.reconnections.append,
                start=start,
            )
        )
        await eventually(lambda: streams.subscriptions.connected)
        return streams

    def topology(self, *, shards: int = 1, queue_max_bytes: int = 1 << 30, delivery_limit: int = 100) -> Topology:
        """Fix the names and bounds of the queues, and see to it that they are deleted in the end."""
        if self._topology is None:
            self._topology = Topology(self.prefix, shards, queue_max_bytes, 1 << 28, delivery_limit)
            self._stack.push_async_callback(self._delete_queues)
        return self._topology

    async def queues(self, *, shards: int = 1, queue_max_bytes: int = 1 << 30) -> Queues[RabbitRelayQueue]:
        self.topology(shards=shards, queue_max_bytes=queue_max_bytes)
        return Queues(await self.rabbit(consumes=False), await self.rabbit(consumes=True))

    async def rabbit(self, *, consumes: bool) -> RabbitRelayQueue:
        """The queues of one node, or of one relay (`consumes`), until the test ends."""
        return await self._stack.enter_async_context(self.open_rabbit(consumes=consumes))

    @asynccontextmanager
    async def open_rabbit(self, *, consumes: bool) -> AsyncIterator[RabbitRelayQueue]:
        """The queues of one node, or of one relay (`consumes`)."""
        async with (
            keepers() as start,
            open_rabbit_relay_queue(
                self._rabbitmq_url,
                self.topology(),
                timeout=self.timeout,
                heartbeat=10,
                prefetch=PREFETCH,
                reconnect_max=0.2,
                consumes=consumes,
                observer=self.reconnections.append,
                start=start,
            ) as queue,
        ):
            link = queue.consumer if consumes else queue.publisher
            await eventually(link.opened.is_set)
            yield queue

    async def dead(self) -> list[bytes]:
        async with self.channel() as channel:
            queue = await channel.get_queue(f"{self.prefix}.dead")
            while (message := await queue.get(fail=False)) is not None:
                self._dead.append(message.body)
                await message.ack()
        return list(self._dead)

    async def lose(self, channel: str) -> None:
        with redis.Redis.from_url(self._redis_url) as client:
            assert client.delete(f"{self.prefix}:{{c{channel}}}:meta", f"{self.prefix}:{{c{channel}}}:stream")

    async def close(self) -> None:
        """Close all that was opened so far."""
        await self._stack.aclose()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """A connection of the test's own to RabbitMQ."""
        connection = await aio_pika.connect(self._rabbitmq_url, timeout=10)
        async with connection:
            yield await connection.channel()

    async def _delete_queues(self) -> None:
        assert self._topology is not None
        names = [self._topology.queue(shard) for shard in range(self._topology.shards)]
        with suppress(AMQPError, OSError):  # a test that failed may have left no server
            async with self.channel() as channel:
                for name in (*names, f"{self.prefix}.dead", f"{self.prefix}.relays"):
                    await channel.queue_delete(name)
                for name in ("relay", "dead"):
                    await channel.exchange_delete(f"{self.prefix}.{name}")
