"""RelayQueue and Consumer."""

import asyncio
import secrets
from contextlib import AsyncExitStack

import pytest

from broker.errors import Refused, Unavailable
from broker.ports import Delivery, RelayQueue

from .brokers import PREFETCH, Brokers, Queues
from .support import bodies, drain, eventually, numbered, running, take, turns


@pytest.fixture
async def queues(brokers: Brokers) -> Queues[RelayQueue]:
    """Two shards from both ends."""
    return await brokers.queues(shards=2)


async def publish_all(queue: RelayQueue, shard: int, published: list[bytes]) -> None:
    """Publish one after the other."""
    for body in published:
        await queue.publish(shard, body)


async def test_shards_are_counted_alike_at_both_ends(queues: Queues[RelayQueue]) -> None:
    assert queues.publisher.shards == queues.consumer.shards == 2


async def test_deliveries_come_in_the_order_of_publishing(queues: Queues[RelayQueue]) -> None:
    published = numbered(200)
    await publish_all(queues.publisher, 0, published)
    async with queues.consumer.consume(0) as consumer:
        received = await drain(consumer, len(published))
    assert bodies(received) == published
    assert not any(delivery.redelivered for delivery in received)


async def test_tags_grow(queues: Queues[RelayQueue]) -> None:
    await publish_all(queues.publisher, 0, numbered(10))
    async with queues.consumer.consume(0) as consumer:
        tags = [delivery.tag for delivery in await take(consumer, 10)]
    assert tags == sorted(set(tags))


async def test_receive_waits_for_what_is_published_later(queues: Queues[RelayQueue]) -> None:
    async with queues.consumer.consume(0) as consumer, running(take(consumer, 1)) as waiting:
        await queues.consumer.relays()
        assert not waiting.done()
        await queues.publisher.publish(0, b"later")
        assert bodies(await waiting) == [b"later"]


async def test_a_cancelled_receive_loses_nothing(queues: Queues[RelayQueue]) -> None:
    async with queues.consumer.consume(0) as consumer:
        for number in range(20):
            body = b"%d" % number
            async with running(consumer.receive()) as waiting, running(queues.publisher.publish(0, body)) as publishing:
                await queues.consumer.relays()
                if number % 2:
                    await publishing
                waiting.cancel()
                await asyncio.wait([waiting])
                await publishing
            received = await consumer.receive() if waiting.cancelled() else waiting.result()
            assert bodies(received) == [body]


@pytest.mark.parametrize("count", [1, 10, 3 * PREFETCH])
async def test_leaving_hands_back_in_order_what_was_not_acknowledged(queues: Queues[RelayQueue], count: int) -> None:
    published = numbered(count)
    await publish_all(queues.publisher, 0, published)
    async with queues.consumer.consume(0) as consumer:
        first = await consumer.receive()
    assert bodies(first) == published[: len(first)]
    async with queues.consumer.consume(0) as consumer:
        again = await drain(consumer, count)
    assert bodies(again) == published
    assert all(delivery.redelivered for delivery in again[: len(first)])


async def test_what_is_handed_back_comes_before_what_was_published_meanwhile(queues: Queues[RelayQueue]) -> None:
    published = numbered(10)
    await publish_all(queues.publisher, 0, published[:5])
    async with queues.consumer.consume(0) as consumer:
        deliveries = await take(consumer, 5)
        await consumer.acknowledge(deliveries[1].tag)
        await publish_all(queues.publisher, 0, published[5:])
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 8)) == published[2:]


async def test_leaving_by_an_error_hands_back_too(queues: Queues[RelayQueue]) -> None:
    published = numbered(5)
    await publish_all(queues.publisher, 0, published)

    async def fail() -> None:
        async with queues.consumer.consume(0) as consumer:
            await take(consumer, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 5)) == published


async def test_being_cancelled_hands_back_too(queues: Queues[RelayQueue]) -> None:
    published = numbered(5)
    await publish_all(queues.publisher, 0, published)
    received = asyncio.Event()

    async def serve() -> None:
        async with queues.consumer.consume(0) as consumer:
            await take(consumer, 5)
            received.set()
            await consumer.receive()

    async with running(serve()):
        await received.wait()
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 5)) == published


async def test_order_survives_many_handovers(queues: Queues[RelayQueue]) -> None:
    published = numbered(30)
    await publish_all(queues.publisher, 0, published)
    settled: list[bytes] = []
    while len(settled) < len(published):
        async with queues.consumer.consume(0) as consumer:
            (first, *_) = await consumer.receive()
            await consumer.acknowledge(first.tag)
            settled.append(first.body)
    assert settled == published


async def test_acknowledge_settles_all_before(queues: Queues[RelayQueue]) -> None:
    await publish_all(queues.publisher, 0, numbered(10))
    async with queues.consumer.consume(0) as consumer:
        deliveries = await take(consumer, 10)
        await consumer.acknowledge(deliveries[6].tag)
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 3)) == numbered(10)[7:]


async def test_what_is_acknowledged_is_never_delivered_again(queues: Queues[RelayQueue]) -> None:
    await publish_all(queues.publisher, 0, numbered(10))
    async with queues.consumer.consume(0) as consumer:
        await consumer.acknowledge((await take(consumer, 10))[-1].tag)
    await queues.publisher.publish(0, b"next")
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 1)) == [b"next"]


async def test_reject_moves_exactly_one_to_the_dead_letters(brokers: Brokers, queues: Queues[RelayQueue]) -> None:
    await publish_all(queues.publisher, 0, numbered(5))
    async with queues.consumer.consume(0) as consumer:
        deliveries = await take(consumer, 5)
        await consumer.reject(deliveries[2].tag)
    await eventually(brokers.dead)
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 4)) == [b"1", b"2", b"4", b"5"]
    assert await brokers.dead() == [b"3"]


async def test_what_is_rejected_may_lie_before_what_is_acknowledged(
    brokers: Brokers, queues: Queues[RelayQueue]
) -> None:
    await publish_all(queues.publisher, 0, numbered(5))
    async with queues.consumer.consume(0) as consumer:
        deliveries = await take(consumer, 5)
        await consumer.reject(deliveries[0].tag)
        await consumer.reject(deliveries[2].tag)
        await consumer.acknowledge(deliveries[3].tag)
        await queues.publisher.publish(0, b"6")
        assert bodies(await take(consumer, 1)) == [b"6"]
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 2)) == [b"5", b"6"]

    async def both() -> bool:
        return sorted(await brokers.dead()) == [b"1", b"3"]

    await eventually(both)


async def test_the_second_in_line_gets_nothing_until_the_first_leaves(
    brokers: Brokers, queues: Queues[RelayQueue]
) -> None:
    other = (await brokers.queues(shards=2)).consumer
    published = numbered(PREFETCH + 20)
    async with AsyncExitStack() as line:
        first = await line.enter_async_context(queues.consumer.consume(0))
        async with other.consume(0) as second, running(drain(second, len(published) - 5)) as waiting:
            await publish_all(queues.publisher, 0, published)
            received: list[Delivery] = []
            while len(received) < PREFETCH:
                received += await first.receive()
            await first.acknowledge(received[4].tag)
            assert await other.relays() == 2
            assert not waiting.done()
            await line.aclose()
            assert bodies(await waiting) == published[5:]


async def test_the_line_keeps_its_order_and_closes_up(brokers: Brokers, queues: Queues[RelayQueue]) -> None:
    consumers = [queues.consumer, *[(await brokers.queues(shards=2)).consumer for _ in range(3)]]
    await queues.publisher.publish(0, b"one")
    async with AsyncExitStack() as all_of_them:
        line = [await all_of_them.enter_async_context(AsyncExitStack()) for _ in consumers]
        first, second, third, fourth = [
            await place.enter_async_context(queue.consume(0)) for place, queue in zip(line, consumers, strict=True)
        ]
        assert bodies(await take(first, 1)) == [b"one"]
        async with running(take(second, 1)) as for_second, running(take(fourth, 1)) as for_fourth:
            async with running(third.receive()) as for_third:
                await line[2].aclose()  # the third leaves while it waits
                await asyncio.wait([for_third], timeout=5)
            with pytest.raises(Unavailable):
                for_third.result()
            await line[0].aclose()
            assert bodies(await for_second) == [b"one"]
            assert not for_fourth.done()
            await line[1].aclose()
            assert bodies(await for_fourth) == [b"one"]


async def test_relays_counts_the_processes_that_consume(brokers: Brokers, queues: Queues[RelayQueue]) -> None:
    relays = [queues.consumer, (await brokers.queues(shards=2)).consumer, (await brokers.queues(shards=2)).consumer]
    async with AsyncExitStack() as consuming:
        for relay in relays:
            for shard in range(relay.shards):
                await consuming.enter_async_context(relay.consume(shard))
        assert [await relay.relays() for relay in relays] == [3, 3, 3]


async def test_shards_are_independent(queues: Queues[RelayQueue]) -> None:
    await publish_all(queues.publisher, 0, numbered(10, "a"))
    await publish_all(queues.publisher, 1, numbered(10, "b"))
    async with queues.consumer.consume(1) as second, queues.consumer.consume(0) as first:
        deliveries = await take(second, 10)
        assert bodies(deliveries) == numbered(10, "b")
        await second.acknowledge(deliveries[-1].tag)
        assert bodies(await take(first, 10)) == numbered(10, "a")
    async with queues.consumer.consume(0) as first:
        assert bodies(await take(first, 10)) == numbered(10, "a")


async def test_a_full_queue_refuses_and_keeps_all_that_it_took(brokers: Brokers) -> None:
    queues = await brokers.queues(shards=2, queue_max_bytes=20_000)
    padding = b"." * 1000
    confirmed: list[bytes] = []

    async def fill() -> None:
        for number in range(1000):
            await queues.publisher.publish(0, b"%d" % number + padding)
            confirmed.append(b"%d" % number + padding)

    with pytest.raises(Refused):
        await fill()
    assert 10 < len(confirmed) < 100
    await queues.publisher.publish(1, b"the other shard has room")
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, len(confirmed))) == confirmed
    async with queues.consumer.consume(0) as consumer:  # handed back, and still all there
        assert bodies(await drain(consumer, len(confirmed))) == confirmed

        async def has_room() -> bool:
            try:
                await queues.publisher.publish(0, b"room again")
            except Refused:
                return False
            return True

        await eventually(has_room)
        assert bodies(await take(consumer, 1)) == [b"room again"]
    assert await brokers.dead() == []


async def test_a_rejected_batch_makes_room(brokers: Brokers) -> None:
    queues = await brokers.queues(shards=1, queue_max_bytes=20_000)
    body = b"." * 1000

    async def fills() -> bool:
        try:
            await queues.publisher.publish(0, body)
        except Refused:
            return True
        return False

    async def has_room() -> bool:
        return not await fills()

    await eventually(fills, pause=0)
    async with queues.consumer.consume(0) as consumer:
        for delivery in await consumer.receive():
            await consumer.reject(delivery.tag)
        await eventually(has_room)


async def test_concurrent_publishes_all_arrive_once(brokers: Brokers, queues: Queues[RelayQueue]) -> None:
    publishers = [queues.publisher, (await brokers.queues(shards=2)).publisher]
    published = numbered(300)
    async with queues.consumer.consume(0) as consumer, running(drain(consumer, len(published))) as receiving:
        await asyncio.gather(*(publishers[index % 2].publish(0, body) for index, body in enumerate(published)))
        assert sorted(bodies(await receiving)) == sorted(published)


async def test_publishers_keep_their_own_order(brokers: Brokers, queues: Queues[RelayQueue]) -> None:
    publishers = {b"a": queues.publisher, b"b": (await brokers.queues(shards=2)).publisher}
    await asyncio.gather(*(publish_all(queue, 0, numbered(50, name.decode())) for name, queue in publishers.items()))
    async with queues.consumer.consume(0) as consumer:
        received = bodies(await drain(consumer, 100))
    for name in publishers:
        assert [body for body in received if body.startswith(name)] == numbered(50, name.decode())


@pytest.mark.parametrize(
    "body",
    [b"", bytes(range(256)), b"\0", b"\n" * 10, "€".encode(), secrets.token_bytes(1 << 20)],
    ids=["empty", "every byte", "NUL", "newlines", "unicode", "1 MiB"],
)
async def test_any_body_arrives_as_it_was(queues: Queues[RelayQueue], body: bytes) -> None:
    await publish_all(queues.publisher, 0, [body, b"next"])
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 2)) == [body, b"next"]


async def test_a_consumer_that_left_is_over(queues: Queues[RelayQueue]) -> None:
    async with queues.consumer.consume(0) as consumer:
        pass
    await queues.publisher.publish(0, b"not for it")
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await consumer.receive()


async def test_a_consumer_that_left_is_over_while_another_reads(queues: Queues[RelayQueue]) -> None:
    async with queues.consumer.consume(0) as left:
        pass
    await queues.publisher.publish(0, b"not for it")
    async with queues.consumer.consume(0) as consumer:
        await take(consumer, 1)
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await left.receive()


@pytest.mark.parametrize("settle", ["acknowledge", "reject"])
async def test_a_consumer_that_left_settles_nothing(brokers: Brokers, queues: Queues[RelayQueue], settle: str) -> None:
    await publish_all(queues.publisher, 0, numbered(3))
    async with queues.consumer.consume(0) as left:
        stale = await take(left, 3)
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 3)) == numbered(3)
        with pytest.raises(Unavailable):
            await getattr(left, settle)(stale[1].tag)
    async with queues.consumer.consume(0) as consumer:
        assert bodies(await take(consumer, 3)) == numbered(3)
    assert await brokers.dead() == []


async def test_what_a_consumer_held_is_not_delivered_to_it_twice(queues: Queues[RelayQueue]) -> None:
    async with queues.consumer.consume(0) as consumer:
        for number in range(10):
            await queues.publisher.publish(0, b"%d" % number)
            assert bodies(await take(consumer, 1)) == [b"%d" % number]


async def test_a_cancelled_publish_disturbs_no_later_one(queues: Queues[RelayQueue]) -> None:
    cancelled, confirmed = numbered(50, "cancelled"), numbered(50, "confirmed")
    for index, (body, next_body) in enumerate(zip(cancelled, confirmed, strict=True)):
        async with running(queues.publisher.publish(0, body)):
            await turns(index)
        await queues.publisher.publish(0, next_body)
    await queues.publisher.publish(0, b"end")
    received: list[bytes] = []
    async with queues.consumer.consume(0) as consumer:
        while b"end" not in received:
            deliveries = await consumer.receive()
            received += bodies(deliveries)
            await consumer.acknowledge(deliveries[-1].tag)
    assert [body for body in received if body in set(confirmed)] == confirmed
    assert len(set(received)) == len(received)


async def test_a_caller_that_is_cancelled_ends(queues: Queues[RelayQueue]) -> None:
    async def call_forever() -> None:
        while True:
            await queues.publisher.publish(0, b"x")
            async with queues.consumer.consume(0) as consumer:
                await consumer.acknowledge((await consumer.receive())[-1].tag)
            await queues.consumer.relays()
            await turns(1)

    for number in range(40):
        async with running(call_forever()):
            await turns(3 * number)
