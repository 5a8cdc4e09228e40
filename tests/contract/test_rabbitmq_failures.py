"""RabbitRelayQueue while RabbitMQ is killed, frozen, short of memory, or loses a queue."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import pytest

from broker.errors import BrokerError, Refused, Unavailable
from broker.ports import RelayQueue
from deploy.cluster import RabbitMQ

from .brokers import PREFETCH, RabbitQueues, ServerBrokers
from .disturb import close_connection, rabbitmqctl, remember_queues
from .support import bodies, drain, eventually, insist, numbered, running, take, turns

pytestmark = pytest.mark.servers

TIMEOUT = 1.0


@pytest.fixture
def timeout() -> float:
    return TIMEOUT


@pytest.fixture
def brokers(server_brokers: ServerBrokers) -> ServerBrokers:
    return server_brokers


@pytest.fixture
async def queues(brokers: ServerBrokers) -> RabbitQueues:
    return await brokers.queues(shards=2)


async def publish_all(queue: RelayQueue, shard: int, published: list[bytes]) -> None:
    """Publish one after the other."""
    for body in published:
        await queue.publish(shard, body)


async def raises_in_time(call: Callable[[], Awaitable[object]], error: type[BrokerError], within: float) -> None:
    """Hold a call to raising this, and that in time."""
    began = time.monotonic()
    with pytest.raises(error):
        await call()
    assert time.monotonic() - began < within


class TestKilled:
    async def test_confirmed_batches_are_all_there_in_order(
        self, brokers: ServerBrokers, rabbitmq_server: RabbitMQ, queues: RabbitQueues
    ) -> None:
        confirmed: list[bytes] = []
        stopped = False

        async def publish() -> None:
            """As a node does: one at a time, and the same again while the outcome is unknown."""
            while not stopped:
                body = b"%d" % (len(confirmed) + 1)
                await insist(partial(queues.publisher.publish, 0, body))
                confirmed.append(body)

        async with running(publish()) as publishing, queues.consumer.consume(1) as consumer:
            await eventually(lambda: len(confirmed) >= 100)
            await remember_queues(rabbitmq_server)
            rabbitmq_server.kill()
            with pytest.raises(Unavailable):
                await consumer.receive()
            await raises_in_time(lambda: queues.publisher.publish(1, b"x"), Unavailable, 2 * TIMEOUT)
            await raises_in_time(lambda: queues.consumer.relays(), Unavailable, 2 * TIMEOUT)
            await raises_in_time(lambda: queues.consumer.consume(0).__aenter__(), Unavailable, 2 * TIMEOUT)
            await asyncio.to_thread(rabbitmq_server.start)
            goal = len(confirmed) + 100
            await eventually(lambda: len(confirmed) >= goal, within=60)
            stopped = True
            await publishing
        await insist(lambda: queues.publisher.publish(0, b"end"))
        received: list[bytes] = []
        async with await insist(lambda: entered(queues.consumer, 0)) as context:
            while b"end" not in received:
                deliveries = await context.consumer.receive()
                received += bodies(deliveries)
                await context.consumer.acknowledge(deliveries[-1].tag)
        once = list(dict.fromkeys(received))  # one whose confirm was lost may be there twice, next to itself
        assert once == [*confirmed, b"end"]
        assert len(received) - len(once) <= 2
        assert received == sorted(received, key=once.index)
        assert brokers.reconnections.count("rabbitmq") == 2  # of the node and of the relay


class Entered:
    """A consumer whose context was entered; leaves it in the end."""

    def __init__(self, queue: RelayQueue, shard: int) -> None:
        self._context = queue.consume(shard)

    async def enter(self) -> "Entered":
        self.consumer = await self._context.__aenter__()
        return self

    async def __aenter__(self) -> "Entered":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._context.__aexit__(None, None, None)


async def entered(queue: RelayQueue, shard: int) -> Entered:
    """Stand in line; raises Unavailable as entering does."""
    return await Entered(queue, shard).enter()


async def test_relays_counts_those_whose_connection_stands(brokers: ServerBrokers, queues: RabbitQueues) -> None:
    relay = queues.consumer

    async def counts(expected: int) -> bool:
        return await insist(relay.relays) == expected

    assert await relay.relays() == 1
    async with brokers.open_rabbit(consumes=True) as other, brokers.open_rabbit(consumes=True):
        await eventually(lambda: counts(3))
        await close_connection(other.consumer.connection)
        await eventually(other.consumer.lost.is_set)
        await eventually(lambda: counts(3))
    await eventually(lambda: counts(1))


class TestConnectionsClosed:
    async def test_a_consumer_is_over_and_the_next_gets_the_rest(
        self, brokers: ServerBrokers, rabbitmq_server: RabbitMQ, queues: RabbitQueues
    ) -> None:
        await publish_all(queues.publisher, 0, numbered(10))
        async with queues.consumer.consume(0) as consumer:
            deliveries = await take(consumer, 10)
            await consumer.acknowledge(deliveries[3].tag)
            await queues.consumer.relays()  # what was sent before is done
            async with running(consumer.receive()) as receiving:
                await rabbitmqctl(rabbitmq_server, "close_all_connections", "test")
                with pytest.raises(Unavailable):
                    await receiving
            with pytest.raises(Unavailable):
                await consumer.acknowledge(deliveries[-1].tag)
            with pytest.raises(Unavailable):
                await consumer.reject(deliveries[-1].tag)
        async with await insist(lambda: entered(queues.consumer, 0)) as context:
            again = await take(context.consumer, 6)
            assert bodies(again) == numbered(10)[4:]
            assert all(delivery.redelivered for delivery in again)
        await insist(lambda: queues.publisher.publish(0, b"11"))
        assert brokers.reconnections == ["rabbitmq"] * 2

    async def test_a_relay_whose_connection_closes_hands_over_to_the_next_in_line(
        self, brokers: ServerBrokers, queues: RabbitQueues
    ) -> None:
        other = await brokers.rabbit(consumes=True)
        await publish_all(queues.publisher, 0, numbered(10))
        async with queues.consumer.consume(0) as first, other.consume(0) as second:
            await take(first, 10)
            await close_connection(queues.consumer.consumer.connection)
            assert bodies(await take(second, 10)) == numbered(10)

    async def test_calls_under_way_raise_only_errors_of_ours(self, queues: RabbitQueues) -> None:
        links = [queues.publisher.publisher, queues.consumer.consumer]
        await publish_all(queues.publisher, 0, numbered(5))
        for number in range(15):
            for link in links:
                await eventually(link.opened.is_set)
            connections = [link.connection for link in links]
            calls = [
                *(queues.publisher.publish(1, b"%d" % index) for index in range(20)),
                *(queues.consumer.relays() for _ in range(3)),
                serve_until_over(queues.consumer, 0),
                serve_until_over(queues.consumer, 0),
            ]
            async with running(gather_results(calls)) as calling:
                await turns(number)
                for connection in connections:
                    await close_connection(connection)
                results = await calling
            errors = [result for result in results if isinstance(result, BaseException)]
            assert [error for error in errors if not isinstance(error, Unavailable)] == []
        await insist(lambda: queues.publisher.publish(0, b"6"))
        async with await insist(lambda: entered(queues.consumer, 0)) as context:
            assert bodies(await take(context.consumer, 6)) == numbered(6)


async def gather_results(calls: Iterable[Awaitable[object]]) -> list[object]:
    """Run calls at once and return what they return or raise."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def serve_until_over(queue: RelayQueue, shard: int) -> None:
    """Do all that a relay does, until it is over; the first five are handed back."""
    async with queue.consume(shard) as consumer:
        while True:
            await consumer.receive()


class TestQueueDeleted:
    async def test_unroutable_is_unavailable_and_the_queue_is_declared_again(
        self, brokers: ServerBrokers, queues: RabbitQueues
    ) -> None:
        await queues.publisher.publish(0, b"lost with its queue")
        async with brokers.channel() as channel:
            await channel.queue_delete(brokers.topology().queue(0))
        await raises_in_time(lambda: queues.publisher.publish(0, b"1"), Unavailable, 2 * TIMEOUT)
        await insist(lambda: queues.publisher.publish(0, b"1"))
        async with await insist(lambda: entered(queues.consumer, 0)) as context:
            assert bodies(await take(context.consumer, 1)) == [b"1"]

    async def test_its_consumer_is_over(self, brokers: ServerBrokers, queues: RabbitQueues) -> None:
        async with (
            queues.consumer.consume(0) as consumer,
            running(consumer.receive()) as receiving,
            brokers.channel() as channel,
        ):
            await channel.queue_delete(brokers.topology().queue(0))
            with pytest.raises(Unavailable):
                await receiving
        with pytest.raises(Unavailable):
            async with queues.consumer.consume(0):
                pass
        await insist(lambda: queues.consumer.relays())  # declared again
        await insist(lambda: queues.publisher.publish(0, b"1"))
        async with await insist(lambda: entered(queues.consumer, 0)) as context:
            assert bodies(await take(context.consumer, 1)) == [b"1"]

    async def test_the_topology_can_be_declared_by_many_at_once(
        self, brokers: ServerBrokers, queues: RabbitQueues
    ) -> None:
        await queues.publisher.publish(0, b"1")
        more = await asyncio.gather(*(brokers.rabbit(consumes=index % 2 == 0) for index in range(6)))
        await more[1].publish(0, b"2")
        async with more[0].consume(0) as consumer:
            assert bodies(await take(consumer, 2)) == [b"1", b"2"]


class TestFrozen:
    async def test_calls_raise_in_time_and_nothing_is_stuck_afterwards(
        self, rabbitmq_server: RabbitMQ, queues: RabbitQueues
    ) -> None:
        await queues.publisher.publish(0, b"before")
        rabbitmq_server.pause()
        await raises_in_time(lambda: queues.publisher.publish(0, b"x"), Unavailable, 2 * TIMEOUT)
        await raises_in_time(lambda: entered(queues.consumer, 0), Unavailable, 3 * TIMEOUT)
        await raises_in_time(lambda: entered(queues.consumer, 0), Unavailable, 3 * TIMEOUT)
        rabbitmq_server.resume()
        await insist(lambda: queues.publisher.publish(0, b"after"))
        received: list[bytes] = []
        async with await insist(lambda: entered(queues.consumer, 0)) as context, asyncio.timeout(20):
            while b"after" not in received:
                received += bodies(await context.consumer.receive())
        assert [body for body in received if body != b"x"] == [b"before", b"after"]

    async def test_leaving_while_it_is_frozen_takes_effect(
        self, rabbitmq_server: RabbitMQ, queues: RabbitQueues
    ) -> None:
        await publish_all(queues.publisher, 0, numbered(5))
        began = time.monotonic()
        async with queues.consumer.consume(0) as consumer:
            await take(consumer, 5)
            rabbitmq_server.pause()
        assert time.monotonic() - began < 4 * TIMEOUT
        rabbitmq_server.resume()
        async with await insist(lambda: entered(queues.consumer, 0)) as context:
            assert bodies(await take(context.consumer, 5)) == numbered(5)

    async def test_a_count_that_took_too_long_does_not_break_the_relay(
        self, rabbitmq_server: RabbitMQ, queues: RabbitQueues
    ) -> None:
        async with queues.consumer.consume(0) as consumer:
            rabbitmq_server.pause()
            await raises_in_time(lambda: queues.consumer.relays(), Unavailable, 3 * TIMEOUT)
            rabbitmq_server.resume()
            await insist(lambda: queues.consumer.relays())
            await insist(lambda: queues.publisher.publish(0, b"1"))
            try:
                received = await take(consumer, 1)
            except Unavailable:  # the whole connection may have been given up
                async with await insist(lambda: entered(queues.consumer, 0)) as context:
                    received = await take(context.consumer, 1)
            assert bodies(received) == [b"1"]


async def publish_until_blocked(queue: RelayQueue, shard: int) -> None:
    """Publish until that is refused, in bounded time: the alarm reaches the connection a moment later."""
    for number in range(100):
        async with asyncio.timeout(2 * TIMEOUT):
            await queue.publish(shard, b"%d" % number)


class TestBlocked:
    async def test_publish_raises_in_time_while_relays_go_on(
        self, rabbitmq_server: RabbitMQ, queues: RabbitQueues
    ) -> None:
        await publish_all(queues.publisher, 0, numbered(5))
        async with queues.consumer.consume(0) as consumer:
            deliveries = await take(consumer, 5)
            await rabbitmqctl(rabbitmq_server, "set_vm_memory_high_watermark", "0.0001")
            try:
                with pytest.raises(BrokerError):
                    await publish_until_blocked(queues.publisher, 1)
                await eventually(lambda: queues.publisher.publisher.blocked)
                for _ in range(3):
                    await raises_in_time(lambda: queues.publisher.publish(1, b"x"), Refused, 0.1)
                await consumer.acknowledge(deliveries[-1].tag)
                await queues.consumer.relays()
            finally:
                await rabbitmqctl(rabbitmq_server, "set_vm_memory_high_watermark", "0.4")

            async def publishes() -> bool:
                try:
                    await queues.publisher.publish(0, b"6")
                except BrokerError:
                    return False
                return True

            await eventually(publishes)
            assert bodies(await take(consumer, 1)) == [b"6"]  # the first five were settled meanwhile

    async def test_a_node_that_closes_while_blocked_does_not_hang(
        self, rabbitmq_server: RabbitMQ, brokers: ServerBrokers
    ) -> None:
        queue = await brokers.rabbit(consumes=False)
        await rabbitmqctl(rabbitmq_server, "set_vm_memory_high_watermark", "0.0001")
        try:
            with pytest.raises(BrokerError):
                await publish_until_blocked(queue, 0)
            began = time.monotonic()
            await brokers.close()
            assert time.monotonic() - began < 5 * TIMEOUT
        finally:
            await rabbitmqctl(rabbitmq_server, "set_vm_memory_high_watermark", "0.4")


async def test_a_consume_cancelled_at_any_moment_leaves_nobody_in_line(queues: RabbitQueues) -> None:
    published = numbered(PREFETCH)
    await publish_all(queues.publisher, 0, published)
    needed = 0
    async with running(entered(queues.consumer, 0)) as entering:
        while not entering.done():
            await turns(1)
            needed += 1
        await entering.result().__aexit__()
    for number in [*range(0, needed * 3 // 2, max(1, needed // 40))] * 4:
        async with running(insist(lambda: entered(queues.consumer, 0))) as entering:
            await turns(number)
        if not entering.cancelled():
            await entering.result().__aexit__()
    # Soon: not when the heartbeat of a connection that nobody reads any more fails, half a minute later.
    async with await insist(lambda: entered(queues.consumer, 0), within=15) as context:
        assert bodies(await drain(context.consumer, PREFETCH)) == published


async def test_what_is_handed_back_too_often_goes_to_the_dead_letters(brokers: ServerBrokers) -> None:
    brokers.topology(shards=1, delivery_limit=3)
    queues = await brokers.queues()
    await publish_all(queues.publisher, 0, numbered(2))
    for _ in range(4):
        async with queues.consumer.consume(0) as consumer:
            first, second = await take(consumer, 2)
            assert (first.body, second.body) == (b"1", b"2")
    await queues.publisher.publish(0, b"3")
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 1)) == [b"3"]

    async def both() -> bool:
        return await brokers.dead() == [b"1", b"2"]

    await eventually(both)


async def test_a_consumer_is_handed_no_more_than_prefetch(queues: RabbitQueues) -> None:
    await publish_all(queues.publisher, 0, numbered(PREFETCH + 10))
    async with queues.consumer.consume(0) as consumer:
        await take(consumer, PREFETCH)
        async with running(consumer.receive()) as receiving:
            await queues.consumer.relays()
            assert not receiving.done()
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await drain(consumer, PREFETCH + 10)) == numbered(PREFETCH + 10)
