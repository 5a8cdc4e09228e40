"""Relay queues in RabbitMQ (3.10 and later): quorum queues with single active consumer, batches as persistent messages.

Topology, declared here and idempotent: direct exchange `<prefix>.relay` → queues `<prefix>.relay.<shard>`; what a relay
rejects or what was delivered too often goes through exchange `<prefix>.dead` to the queue `<prefix>.dead`.
Publishing and consuming use connections of their own, so that a blocked publisher does not stop acknowledgements.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aio_pika
import aiormq.abc
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, UnderlayConnection
from aio_pika.exceptions import DeliveryError, PublishError

from broker.cancellation import is_cancelled, raise_if_cancelled
from broker.errors import BrokerError, Refused, Unavailable
from broker.ports import Consumer, Delivery, Observer

log = structlog.get_logger(__name__)

_WATCH_SECONDS = 1.0  # how often a connection is asked whether RabbitMQ blocks it


@dataclass(frozen=True)
class Topology:
    """Names and bounds of the queues. Every node and relay declares the same."""

    prefix: str
    shards: int
    queue_max_bytes: int
    dead_letters_max_bytes: int
    delivery_limit: int

    async def declare(self, channel: AbstractChannel) -> AbstractExchange:
        """Declare everything; return the exchange to publish to."""
        dead = await channel.declare_exchange(f"{self.prefix}.dead", aio_pika.ExchangeType.FANOUT, durable=True)
        dead_queue = await channel.declare_queue(
            f"{self.prefix}.dead",
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length-bytes": self.dead_letters_max_bytes},
        )
        await dead_queue.bind(dead)
        await channel.declare_queue(self.members, durable=True, arguments={"x-queue-type": "quorum"})
        relay = await channel.declare_exchange(f"{self.prefix}.relay", aio_pika.ExchangeType.DIRECT, durable=True)
        for shard in range(self.shards):
            queue = await channel.declare_queue(self.queue(shard), durable=True, arguments=self._arguments())
            await queue.bind(relay, routing_key=str(shard))
        return relay

    def queue(self, shard: int) -> str:
        """Name of a shard's queue."""
        return f"{self.prefix}.relay.{shard}"

    @property
    def members(self) -> str:
        """Name of a queue that stays empty: its consumers are the relays (a shard's queue counts the active one)."""
        return f"{self.prefix}.relays"

    def _arguments(self) -> dict[str, Any]:
        return {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": f"{self.prefix}.dead",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-max-length-bytes": self.queue_max_bytes,
        }


class _Link:
    """One connection that is kept up: `opened` is set while it can be used."""

    def __init__(self, url: str, name: str, timeout: float, heartbeat: int, *, is_member: bool = False) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._is_member = is_member
        self.connection: AbstractConnection | None = None
        self.exchange: AbstractExchange | None = None
        self.channel: AbstractChannel | None = None
        self.opened = asyncio.Event()
        self.lost = asyncio.Event()
        self.blocked = False

    async def run(self, topology: Topology, reconnect_max: float, observer: Observer) -> None:
        """Keep the connection up for ever."""
        pause, lost = 0.0, False
        while True:
            try:
                with _translated("connect"):
                    async with asyncio.timeout(self._timeout * 4):
                        await self._open(topology)
                if lost:
                    observer("rabbitmq")
                pause = 0.0
                log.info("rabbitmq connected", link=self._name)
                with _translated("watch"):
                    await self._watch()
            except Unavailable as error:
                log.warning("rabbitmq connection lost", link=self._name, error=str(error))
            finally:
                await self._drop()
            lost = True
            pause = min(reconnect_max, max(0.05, pause * 2))
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter

    async def _open(self, topology: Topology) -> None:
        self.connection = await aio_pika.connect(
            self._url,
            client_properties={"connection_name": f"gateway {self._name}"},
            heartbeat=self._heartbeat,
            timeout=self._timeout,
        )
        self.lost.clear()
        self.connection.close_callbacks.add(self._on_close)
        self.channel = await self.connection.channel(publisher_confirms=True, on_return_raises=True)
        self.channel.close_callbacks.add(self._on_close)
        self.exchange = await topology.declare(self.channel)
        if self._is_member:
            underlay = await self.channel.get_underlay_channel()
            await underlay.basic_consume(topology.members, _ignore)
        self.opened.set()

    def _on_close(self, *_: object) -> None:
        self.lost.set()

    async def _watch(self) -> None:
        """Return when the connection or its channel is gone; meanwhile tell whether RabbitMQ blocks it."""
        while not self.lost.is_set():
            transport = self.connection and self.connection.transport
            if not isinstance(transport, UnderlayConnection):
                return
            self.blocked = not await _finishes(transport.connection.ready(), _WATCH_SECONDS)
            await _finishes(self.lost.wait(), _WATCH_SECONDS)

    async def _drop(self) -> None:
        self.opened.clear()
        connection, self.connection, self.channel, self.exchange = self.connection, None, None, None
        self.blocked = False
        if connection is not None:
            with suppress(Unavailable), _translated("close"):
                async with asyncio.timeout(self._timeout):
                    await connection.close()

    @contextmanager
    def given_up_without_answer(self) -> Iterator[None]:
        """Give up the connection when a call ends without its answer.

        aiormq 7.2 reads such a channel no more; a few deliveries fill its buffer (10 frames), and the reader of the
        whole connection waits for room in it until the heartbeat fails, half a minute later.
        """
        try:
            yield
        except (TimeoutError, asyncio.CancelledError):
            self.lost.set()
            raise

    async def wait_opened(self) -> None:
        """Wait within the timeout until the connection can be used. Raises Unavailable."""
        if not self.opened.is_set() and not await _finishes(self.opened.wait(), self._timeout):
            raise Unavailable("rabbitmq: not connected")


async def _ignore(_: object) -> None:
    """Take nothing from a queue that one consumes from in order to be counted."""


async def _finishes(awaitable: Awaitable[object], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await awaitable
    except TimeoutError:
        return False
    return True


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn the client library's errors into Unavailable."""
    try:
        yield
    except BrokerError:
        raise
    except Exception as error:  # aiormq raises RuntimeErrors and bare Exceptions, too, on closed connections
        raise Unavailable(f"rabbitmq: {doing}: {str(error) or type(error).__name__}") from error
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise Unavailable(f"rabbitmq: {doing}: connection lost") from None
    raise_if_cancelled()


class RabbitConsumer:
    """A consumer on a channel of its own: closing the channel hands back, in order, what is not acknowledged."""

    def __init__(self, channel: aiormq.abc.AbstractChannel) -> None:
        self._channel = channel
        self._arrived: list[Delivery] = []
        self._changed = asyncio.Event()
        self._over = False
        self._last_tag = 0

    async def receive(self) -> Sequence[Delivery]:
        while not self._arrived and not self._over:
            self._changed.clear()
            await self._changed.wait()
        if self._over:
            raise Unavailable("rabbitmq: consumer is over")
        arrived, self._arrived = self._arrived, []
        return arrived

    async def acknowledge(self, tag: int) -> None:
        await self._settle(self._channel.basic_ack(tag, multiple=True))

    async def reject(self, tag: int) -> None:
        await self._settle(self._channel.basic_reject(tag, requeue=False))

    async def _settle(self, call: Awaitable[object]) -> None:
        with _translated("settle"):
            await call

    async def take(self, message: aiormq.abc.DeliveredMessage) -> None:
        """Take what RabbitMQ delivers; the client library calls this once per message, in order."""
        tag = message.delivery_tag
        assert tag is not None
        if tag <= self._last_tag:  # cannot happen while tasks start in order; order matters more than this consumer
            log.error("deliveries out of order", tag=tag, last=self._last_tag)
            self.end()
            return
        self._last_tag = tag
        self._arrived.append(Delivery(tag, message.body, bool(message.redelivered)))
        self._changed.set()

    def end(self, *_: object) -> None:
        """Note that nothing more will come: the channel closed or the queue is gone."""
        self._over = True
        self._changed.set()


class RabbitRelayQueue:
    """RelayQueue in RabbitMQ. Open it with `open_rabbit_relay_queue`."""

    def __init__(self, url: str, topology: Topology, timeout: float, heartbeat: int, prefetch: int, role: str) -> None:
        self._topology = topology
        self._timeout = timeout
        self._prefetch = prefetch
        self.publisher = _Link(url, f"{role} publisher", timeout, heartbeat)
        self.consumer = _Link(url, f"{role} consumer", timeout, heartbeat, is_member=True)

    @property
    def shards(self) -> int:
        return self._topology.shards

    async def publish(self, shard: int, body: bytes) -> None:
        link = self.publisher
        await link.wait_opened()
        if link.blocked:
            raise Refused("rabbitmq blocks publishing: it is out of memory or disk")
        assert link.exchange is not None
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        with _translated("publish"):
            try:
                await link.exchange.publish(message, str(shard), mandatory=True, timeout=self._timeout)
            except PublishError:  # returned as unroutable: the queue is gone, a new link declares it again
                link.lost.set()
                raise
            except DeliveryError as error:
                raise Refused(f"rabbitmq refused the batch: relay queue {shard} is full or without a leader") from error

    @asynccontextmanager
    async def consume(self, shard: int) -> AsyncIterator[Consumer]:
        link = self.consumer
        await link.wait_opened()
        assert link.connection is not None
        async with AsyncExitStack() as stack:
            with _translated("consume"), link.given_up_without_answer():
                async with asyncio.timeout(self._timeout):
                    channel = await link.connection.channel(publisher_confirms=False)
                    stack.push_async_callback(self._leave, channel)  # whatever comes: nobody stays in line unheard
                    underlay = await channel.get_underlay_channel()
                    consumer = RabbitConsumer(underlay)
                    channel.close_callbacks.add(consumer.end)
                    underlay.on_consumer_cancel_callbacks.add(consumer.end)
                    await channel.set_qos(prefetch_count=self._prefetch)
                    await underlay.basic_consume(self._topology.queue(shard), consumer.take)
            stack.callback(consumer.end)
            yield consumer

    async def _leave(self, channel: AbstractChannel) -> None:
        try:
            with _translated("leave"):
                async with asyncio.timeout(self._timeout):
                    await channel.close()
        except Unavailable:
            self.consumer.lost.set()  # only a new connection is sure to leave the line

    async def relays(self) -> int:
        link = self.consumer
        await link.wait_opened()
        assert link.channel is not None
        with _translated("count relays"):
            async with asyncio.timeout(self._timeout):
                queue = await link.channel.declare_queue(self._topology.members, passive=True)
        return queue.declaration_result.consumer_count or 0


@asynccontextmanager
async def open_rabbit_relay_queue(
    url: str,
    topology: Topology,
    *,
    timeout: float,
    heartbeat: int,
    prefetch: int,
    reconnect_max: float,
    consumes: bool,
    observer: Observer,
    start: Callable[[Coroutine[Any, Any, None]], object],
) -> AsyncIterator[RabbitRelayQueue]:
    """Open the relay queues at `url`: to publish to (a node), or to consume from as well (`consumes`, a relay).

    `start` runs the connection keepers as background tasks.
    """
    queue = RabbitRelayQueue(url, topology, timeout, heartbeat, prefetch, "relay" if consumes else "node")
    if consumes:
        start(queue.consumer.run(topology, reconnect_max, observer))
    else:
        start(queue.publisher.run(topology, reconnect_max, observer))
    yield queue
