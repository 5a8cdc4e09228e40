"""Basics of the memory engine, in its own terms. What every engine promises is held by tests/contract/."""

import asyncio

import pytest

from broker.envelope import Batch, Group, Publication, Retention, encode_publication
from broker.errors import Refused, Unavailable
from broker.memory import MemoryRelayQueue, MemoryStreams
from tests.unit.doubles import RecordingFollower, SettableClock
from tests.unit.waiting import turns

KEEP_ALL = Retention(100, 60.0)


def batch(
    sequence: int, *data: str, channel: str = "c", publisher: str = "p", retention: Retention = KEEP_ALL
) -> Batch:
    """A batch of one group."""
    publications = [encode_publication(Publication(text.encode())) for text in data]
    return Batch(publisher, sequence, [Group(channel, retention, publications)])


async def kept(streams: MemoryStreams, channel: str = "c") -> list[tuple[int, bytes]]:
    """Offset and data of everything that can be read."""
    page = await streams.read(channel, None, 1000)
    return [(publication.offset, publication.data) for publication in page.publications]


# Queues.


async def test_queue_gives_its_reader_what_was_published_in_order() -> None:
    queue = MemoryRelayQueue(2)
    for body in (b"1", b"2", b"3"):
        await queue.publish(1, body)
    async with queue.consume(1) as consumer:
        assert [delivery.body for delivery in await consumer.receive()] == [b"1", b"2", b"3"]


async def test_queue_delivers_again_in_order_what_its_reader_did_not_acknowledge() -> None:
    queue = MemoryRelayQueue(1)
    for body in (b"1", b"2", b"3"):
        await queue.publish(0, body)
    async with queue.consume(0) as consumer:
        first, *_ = await consumer.receive()
        await consumer.acknowledge(first.tag)
        await queue.publish(0, b"4")
    async with queue.consume(0) as consumer:
        again = await consumer.receive()
    assert [(delivery.body, delivery.redelivered) for delivery in again] == [(b"2", True), (b"3", True), (b"4", False)]


async def test_queue_that_is_full_refuses_until_something_is_settled() -> None:
    queue = MemoryRelayQueue(1, queue_max_bytes=10)
    await queue.publish(0, bytes(6))
    with pytest.raises(Refused, match="queue_max_bytes"):
        await queue.publish(0, bytes(6))
    async with queue.consume(0) as consumer:
        (delivery,) = await consumer.receive()
        with pytest.raises(Refused):
            await queue.publish(0, bytes(6))
        await consumer.acknowledge(delivery.tag)
    await queue.publish(0, bytes(6))


async def test_rejected_delivery_is_dead_and_makes_room() -> None:
    queue = MemoryRelayQueue(1, queue_max_bytes=10)
    await queue.publish(0, b"poison")
    async with queue.consume(0) as consumer:
        (delivery,) = await consumer.receive()
        await consumer.reject(delivery.tag)
    assert queue.dead == [b"poison"]
    await queue.publish(0, bytes(10))


async def test_next_in_line_reads_when_the_active_reader_leaves() -> None:
    queue = MemoryRelayQueue(1)
    await queue.publish(0, b"1")

    async def read_in_line() -> bytes:
        async with queue.consume(0) as consumer:
            return (await consumer.receive())[0].body

    async with queue.consume(0) as active:
        await active.receive()
        second = asyncio.create_task(read_in_line())
        await turns()
        assert await queue.relays() == 2
        assert not second.done(), "two readers of one shard"
    assert await second == b"1"
    assert await queue.relays() == 0


async def test_reader_that_left_gets_unavailable() -> None:
    queue = MemoryRelayQueue(1)
    async with queue.consume(0) as consumer:
        receiving = asyncio.create_task(consumer.receive())
        await turns()
    with pytest.raises(Unavailable):
        await receiving


# Streams.


async def test_stream_counts_from_1_and_keeps_the_newest() -> None:
    streams = MemoryStreams()
    ((end,),) = await streams.append([batch(1, "1", "2", "3", retention=Retention(2, 60.0))])  # type: ignore[misc]
    assert end.offset == 3
    assert await kept(streams) == [(2, b"2"), (3, b"3")]


async def test_stream_forgets_its_entries_after_their_ttl_and_keeps_its_position() -> None:
    clock = SettableClock()
    streams = MemoryStreams(position_ttl=1000.0, clock=clock)
    await streams.append([batch(1, "1", retention=Retention(10, 60.0))])
    (before,) = await streams.positions(["c"])
    clock.advance(60.0)
    assert await kept(streams) == [(1, b"1")]
    clock.advance(0.1)
    assert await kept(streams) == []
    assert await streams.positions(["c"]) == [before]


async def test_stream_unused_for_its_position_ttl_begins_a_new_epoch() -> None:
    clock = SettableClock()
    streams = MemoryStreams(position_ttl=1000.0, clock=clock)
    await streams.append([batch(1, "1")])
    (before,) = await streams.positions(["c"])
    clock.advance(1000.1)
    (after,) = await streams.positions(["c"])
    assert after.epoch != before.epoch
    assert after.offset == 0


async def test_streams_unused_for_long_leave_no_trace_when_a_new_one_comes() -> None:
    clock = SettableClock()
    streams = MemoryStreams(position_ttl=1000.0, clock=clock)
    await streams.positions([f"channel {number}" for number in range(100)])
    clock.advance(1100.0)
    await streams.positions(["new"])
    assert len(streams._streams) == 1


async def test_repeated_batch_is_committed_once() -> None:
    streams = MemoryStreams()
    first, second = batch(1, "1"), batch(2, "2")
    outcomes = await streams.append([first, second])
    assert await streams.append([first, second]) == [outcomes[1], outcomes[1]]
    assert await kept(streams) == [(1, b"1"), (2, b"2")]


async def test_batches_of_two_publishers_do_not_hide_each_other() -> None:
    streams = MemoryStreams()
    await streams.append([batch(5, "a", publisher="one"), batch(1, "b", publisher="other")])
    assert await kept(streams) == [(1, b"a"), (2, b"b")]


async def test_follower_hears_what_it_subscribed_to_on_a_later_turn() -> None:
    streams, follower = MemoryStreams(), RecordingFollower()
    streams.follow(follower)
    await streams.subscribe(["c"])
    await streams.append([batch(1, "1", "2"), batch(1, "x", channel="another")])
    assert follower.groups == [], "called within the append"
    await turns()
    assert [(group.channel, group.offset, len(group.publications)) for group in follower.groups] == [("c", 1, 2)]


async def test_follower_hears_nothing_after_unsubscribing_not_even_what_was_under_way() -> None:
    streams, follower = MemoryStreams(), RecordingFollower()
    streams.follow(follower)
    await streams.subscribe(["c"])
    await streams.append([batch(1, "1")])
    await streams.unsubscribe(["c"])
    await turns()
    assert follower.groups == []


async def test_stream_can_be_read_from_either_end() -> None:
    streams = MemoryStreams()
    await streams.append([batch(1, "1", "2", "3", "4")])
    forward = await streams.read("c", 1, 2)
    backward = await streams.read("c", 4, 2, reverse=True)
    assert [publication.offset for publication in forward.publications] == [2, 3]
    assert [publication.offset for publication in backward.publications] == [3, 2]
    assert forward.end == backward.end
    assert forward.end.offset == 4
