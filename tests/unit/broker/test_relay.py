"""The relay: commit, then acknowledge; nothing lost, nothing twice, nothing redelivered for ever."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from broker.envelope import Batch, Group, Publication, Retention, encode_batch, encode_publication
from broker.ports import RelayQueue
from broker.relay import Relay, excess
from tests.unit.doubles import CommandedQueue, CommandedStreams, RecordingRelayObserver, StrictQueue
from tests.unit.waiting import eventually, turns

NEVER = 3600.0


def encoded(sequence: int, *data: str, channel: str = "c", sent: float = 0.0) -> bytes:
    """The bytes of a batch of one group."""
    publications = [encode_publication(Publication(text.encode())) for text in data]
    return encode_batch(Batch("p", sequence, [Group(channel, Retention(100, 60.0), publications)], sent))


async def committed(streams: CommandedStreams, channel: str = "c") -> list[str]:
    """The data of everything in the stream."""
    return [publication.data.decode() for publication in await streams.kept(channel)]


@asynccontextmanager
async def relaying(
    queue: RelayQueue, streams: CommandedStreams, rebalance_seconds: float = NEVER
) -> AsyncIterator[RecordingRelayObserver]:
    """A relay that runs until the context ends, or fails it when it dies."""
    observer = RecordingRelayObserver()
    relay = Relay(queue, streams, observer=observer, rebalance_seconds=rebalance_seconds)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(relay.run())
        yield observer
        running.cancel()


async def test_batch_is_committed_then_acknowledged() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    streams.gate.shut()
    async with relaying(queue, streams) as observer:
        await queue.publish(0, encoded(1, "a", "b"))
        await eventually(lambda: streams.gate.waiting == 1)
        assert queue.settled == [], "acknowledged before the commit"
        streams.gate.open()
        await eventually(lambda: queue.settled == [("acknowledge", 1)])
        assert await committed(streams) == ["a", "b"]
        assert len(observer.commits) == 1


async def test_batches_that_wait_are_committed_in_order_with_one_call_and_one_acknowledgement() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    for number in range(1, 6):
        await queue.publish(0, encoded(number, f"{number}"))
    async with relaying(queue, streams):
        await eventually(lambda: bool(queue.settled))
        assert queue.settled == [("acknowledge", 5)]
        assert streams.calls["append"] == 1
        assert await committed(streams) == ["1", "2", "3", "4", "5"]


async def test_observer_learns_how_long_a_batch_was_under_way() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    await queue.publish(0, encoded(1, "a", sent=time.time() - 100))
    async with relaying(queue, streams) as observer:
        await eventually(lambda: bool(observer.commits))
    ((batch, seconds),) = observer.commits
    assert batch.sequence == 1
    assert 100 <= seconds < 130


@pytest.mark.parametrize("poison", [b"", b"not an envelope", b'{"a": 1}', b"\x93\xa1a\xa1b\x90"])
async def test_what_cannot_be_decoded_is_dead_and_stops_nothing(poison: bytes) -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    for body in (encoded(1, "before"), poison, encoded(2, "after")):
        await queue.publish(0, body)
    async with relaying(queue, streams) as observer:
        await eventually(lambda: len(queue.settled) == 2)
        assert queue.settled == [("reject", 2), ("acknowledge", 3)]
        assert queue.dead == [poison]
        assert await committed(streams) == ["before", "after"]
        assert observer.deaths == 1
        await queue.publish(0, encoded(3, "later"))
        await eventually(lambda: len(observer.commits) == 3)


async def test_what_is_not_even_text_is_dead_and_stops_nothing() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    poison = b"\x93\xa1\xff\x01\x90"  # a publisher that is not UTF-8
    await queue.publish(0, poison)
    async with relaying(queue, streams):
        await eventually(lambda: queue.dead == [poison])


async def test_only_poison_is_rejected_and_nothing_acknowledged() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    await queue.publish(0, b"poison")
    await queue.publish(0, b"more poison")
    async with relaying(queue, streams):
        await eventually(lambda: len(queue.dead) == 2)
        await turns()
        assert queue.settled == [("reject", 1), ("reject", 2)]
        assert streams.calls == {}


async def test_batch_that_the_streams_refuse_is_dead_and_the_others_committed() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    streams.refused.add(1)
    await queue.publish(0, encoded(1, "refused"))
    await queue.publish(0, encoded(2, "fine"))
    async with relaying(queue, streams) as observer:
        await eventually(lambda: len(queue.settled) == 2)
        assert queue.settled == [("reject", 1), ("acknowledge", 2)]
        assert queue.dead == [encoded(1, "refused")]
        assert observer.deaths == 1
        assert [batch.sequence for batch, _ in observer.commits] == [2]


async def test_last_batch_refused_is_not_settled_twice() -> None:
    # RabbitMQ closes the channel when a tag that was rejected is acknowledged: the batches before come again.
    queue, streams = StrictQueue(), CommandedStreams()
    await queue.publish(0, encoded(1, "fine"))
    await queue.publish(0, encoded(2, "refused"))
    streams.refused.add(2)
    async with relaying(queue, streams):
        await eventually(lambda: len(queue.settled) == 2)
        assert queue.dead == [encoded(2, "refused")]
        assert await committed(streams) == ["fine"]
        assert queue.faults == []


async def test_relay_holds_what_it_has_while_streams_are_away_and_loses_nothing() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    streams.away = True
    async with relaying(queue, streams) as observer:
        await queue.publish(0, encoded(1, "a"))
        await eventually(lambda: streams.calls.get("append", 0) >= 2)
        await queue.publish(0, encoded(2, "b"))
        await eventually(lambda: streams.calls["append"] >= 3)
        assert queue.settled == [], "settled without a commit"
        assert observer.commits == []
        streams.away = False
        await eventually(lambda: len(observer.commits) == 2)
        assert await committed(streams) == ["a", "b"]
        assert queue.settled == [("acknowledge", 1), ("acknowledge", 2)]


async def test_repeated_batch_is_committed_once_and_acknowledged() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    for body in (encoded(1, "a"), encoded(1, "a"), encoded(2, "b"), encoded(1, "a")):
        await queue.publish(0, body)
    async with relaying(queue, streams):
        await eventually(lambda: queue.settled == [("acknowledge", 4)])
        assert await committed(streams) == ["a", "b"]


async def test_what_a_cancelled_relay_had_not_acknowledged_another_commits_once() -> None:
    queue, streams = StrictQueue(), CommandedStreams()
    await queue.publish(0, encoded(1, "a"))
    streams.gate.shut()
    async with relaying(queue, streams):
        await eventually(lambda: streams.gate.waiting == 1)
    assert queue.settled == []
    streams.gate.open()
    await queue.publish(0, encoded(2, "b"))
    async with relaying(queue, streams):
        await eventually(lambda: bool(queue.settled))
        assert await committed(streams) == ["a", "b"]


async def test_relay_serves_every_shard() -> None:
    queue, streams = CommandedQueue(4), CommandedStreams()
    async with relaying(queue, streams) as observer:
        for shard in range(4):
            await queue.publish(shard, encoded(1, "x", channel=f"channel {shard}"))
        await eventually(lambda: len(observer.commits) == 4)
        assert await queue.relays() == 1


async def test_shard_whose_streams_are_away_does_not_stop_the_other_shards() -> None:
    queue, streams = CommandedQueue(2), CommandedStreams()
    streams.away_for.add("away")
    await queue.publish(0, encoded(1, "x", channel="away"))
    async with relaying(queue, streams) as observer:
        await eventually(lambda: streams.calls.get("append", 0) >= 2)
        await queue.publish(1, encoded(1, "y", channel="here"))
        await eventually(lambda: len(observer.commits) == 1)
        assert await committed(streams, "here") == ["y"]
        assert await committed(streams, "away") == []


async def test_relay_waits_for_a_queue_that_is_away_and_serves_it_when_it_is_back() -> None:
    queue, streams = CommandedQueue(2), CommandedStreams()
    queue.away = True
    async with relaying(queue, streams) as observer:
        await eventually(lambda: queue.asked_while_away >= 4)
        await queue.publish(0, encoded(1, "a"))
        queue.away = False
        await eventually(lambda: len(observer.commits) == 1)
        assert await committed(streams) == ["a"]


async def test_relay_that_cannot_count_the_others_keeps_its_shards() -> None:
    queue, streams = CommandedQueue(2), CommandedStreams()
    async with relaying(queue, streams, 0.01) as observer:
        await queue.publish(0, encoded(1, "a"))
        await eventually(lambda: len(observer.commits) == 1)
        queue.away = True
        await eventually(lambda: queue.asked_while_away >= 2)
        await queue.publish(0, encoded(2, "b"))
        await eventually(lambda: len(observer.commits) == 2)


# Handing over.

SHARES = [
    # busy, shards, relays, excess
    (8, 8, 1, 0),
    (8, 8, 2, 4),
    (4, 8, 2, 0),
    (5, 8, 3, 2),
    (3, 8, 3, 0),
    (1, 8, 8, 0),
    (1, 8, 100, 0),
    (2, 8, 100, 1),
    (0, 8, 4, 0),
    (8, 8, 0, 0),
    (3, 1, 1, 2),
]


@pytest.mark.parametrize(("busy", "shards", "relays", "expected"), SHARES)
def test_excess_is_what_is_more_than_a_fair_share_rounded_up(
    busy: int, shards: int, relays: int, expected: int
) -> None:
    assert excess(busy, shards, relays) == expected


async def test_two_relays_come_to_share_the_busy_shards() -> None:
    shards = 4
    queue, streams = CommandedQueue(shards), CommandedStreams()
    async with relaying(queue, streams, 0.02) as first, relaying(queue, streams, 0.02) as second:
        sequence = 0
        while not (first.commits and second.commits):
            sequence += 1
            for shard in range(shards):
                await queue.publish(shard, encoded(sequence, f"{sequence}", channel=f"channel {shard}"))
            await eventually(partial(have_committed, sequence * shards, first, second))
    for shard in range(shards):
        assert await committed(streams, f"channel {shard}") == [f"{n}" for n in range(1, sequence + 1)][-100:]


def have_committed(count: int, *relays: RecordingRelayObserver) -> bool:
    """Whether these relays have committed so many batches together."""
    return sum(len(relay.commits) for relay in relays) >= count
