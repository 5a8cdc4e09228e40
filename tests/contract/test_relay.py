"""The relay between a RelayQueue and Streams: everything once, in order, whatever is cut short."""

import asyncio

import pytest

from broker.envelope import Batch, Group, encode_batch
from broker.ports import RelayQueue, Streams
from broker.relay import excess

from .brokers import Brokers, Queues
from .relaying import CHANNELS, Log, Node, StreamsWithFaults, relaying
from .support import KEPT, Ear, batch, eventually, everything, numbered, placed

SHARDS = 4


@pytest.fixture
async def queues(brokers: Brokers) -> Queues[RelayQueue]:
    """Four shards from both ends."""
    return await brokers.queues(shards=SHARDS)


@pytest.mark.parametrize(
    ("busy", "shards", "relays", "expected"),
    [(8, 8, 1, 0), (8, 8, 2, 4), (4, 8, 2, 0), (5, 8, 2, 1), (8, 8, 3, 5), (1, 8, 20, 0), (0, 8, 0, 0), (3, 2, 0, 1)],
)
def test_excess_is_what_is_more_than_a_share(busy: int, shards: int, relays: int, expected: int) -> None:
    assert excess(busy, shards, relays) == expected


async def test_batches_come_out_once_in_order(streams: Streams, queues: Queues[RelayQueue]) -> None:
    log, node = Log(), Node("n", queues.publisher)
    await node.publish(10)
    async with relaying(queues.consumer, streams, log):
        await node.publish(20)
        await node.all_committed(streams)
        await eventually(lambda: len(log.committed_batches) >= 30 * SHARDS)
    assert len(set(log.committed_batches)) == len(log.committed_batches) == 30 * SHARDS
    assert log.dead_batches == 0


async def test_followers_hear_what_was_relayed(streams: Streams, queues: Queues[RelayQueue], ear: Ear) -> None:
    await streams.subscribe(CHANNELS)
    node = Node("n", queues.publisher)
    async with relaying(queues.consumer, streams):
        await node.publish(10)
        await node.all_committed(streams)
        for channel in CHANNELS:
            await eventually(lambda channel=channel: len(ear.heard(channel)) >= 20)
            assert ear.heard(channel) == placed((await everything(streams, channel)).publications)


async def test_several_nodes_keep_their_own_order(
    brokers: Brokers, streams: Streams, queues: Queues[RelayQueue]
) -> None:
    nodes = [Node(name, (await brokers.queues(shards=SHARDS)).publisher) for name in "pqr"]
    async with relaying(queues.consumer, streams):
        await asyncio.gather(*(node.publish(15) for node in nodes))
        await nodes[0].all_committed(streams, nodes[1:])


async def test_a_batch_published_twice_comes_out_once(streams: Streams, queues: Queues[RelayQueue]) -> None:
    first, second = (encode_batch(batch(number, {"a": [b"%d" % number]})) for number in (1, 2))
    for body in (first, first, second, second, first):
        await queues.publisher.publish(0, body)
    log = Log()
    async with relaying(queues.consumer, streams, log):
        await eventually(lambda: len(log.committed_batches) == 5)
    assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2")]


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_what_cannot_be_decoded_goes_to_the_dead_letters(
    brokers: Brokers, streams: Streams, queues: Queues[RelayQueue], place: int
) -> None:
    poison, log = b"\xc1 not a batch", Log()
    published = [encode_batch(batch(number, {"a": [b"%d" % number]})) for number in range(1, 5)]
    for body in [*published[:place], poison, *published[place:]]:
        await queues.publisher.publish(0, body)
    async with relaying(queues.consumer, streams, log):
        await eventually(lambda: log.dead_batches and len(log.committed_batches) >= 4)
        await queues.publisher.publish(0, encode_batch(batch(5, {"a": [b"5"]})))
        await eventually(lambda: len(log.committed_batches) >= 5)
    await eventually(brokers.dead)
    assert placed((await everything(streams, "a")).publications) == list(enumerate(numbered(5), 1))
    assert await brokers.dead() == [poison]
    assert (log.dead_batches, len(log.committed_batches)) == (1, 5)


async def test_other_bytes_that_are_no_batch_go_to_the_dead_letters(
    brokers: Brokers, streams: Streams, queues: Queues[RelayQueue]
) -> None:
    whole = encode_batch(Batch("p", 1, [Group("a", KEPT, [b"x"])]))
    poisons = [b"", b"\x00", b"{}", b"[]", b"\x90", whole[:-1], whole + b"\x00", b"\xff" * 1000]
    for poison in poisons:
        await queues.publisher.publish(0, poison)
    log = Log()
    async with relaying(queues.consumer, streams, log):
        await eventually(lambda: log.dead_batches == len(poisons))

    async def all_dead() -> bool:
        return sorted(await brokers.dead()) == sorted(poisons)

    await eventually(all_dead)
    assert log.committed_batches == []


async def test_two_relays_share_the_shards(brokers: Brokers, streams: Streams, queues: Queues[RelayQueue]) -> None:
    logs, node = [Log(), Log()], Node("n", queues.publisher)
    other_queue, other_streams = (await brokers.queues(shards=SHARDS)).consumer, await brokers.streams()

    def shares() -> list[set[str]]:
        return [{publisher for publisher, _ in log.committed_batches[-SHARDS:]} for log in logs]

    async with relaying(queues.consumer, streams, logs[0], rebalance_seconds=0.2):
        await node.publish(1)
        await node.all_committed(streams)
        async with relaying(other_queue, other_streams, logs[1], rebalance_seconds=0.2):

            async def both_serve() -> bool:
                for log in logs:
                    log.committed_batches.clear()
                await node.publish(2)
                await node.all_committed(streams)
                return all(len(share) == SHARDS // 2 for share in shares())

            await eventually(both_serve)
        await node.publish(5)  # one relay has left: the other serves all
        await node.all_committed(streams)


async def test_a_relay_cancelled_mid_stream_loses_and_repeats_nothing(
    brokers: Brokers, streams: Streams, queues: Queues[RelayQueue]
) -> None:
    node = Node("n", queues.publisher)
    async with asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(node.publish(100))
        while not publishing.done():
            log = Log()
            async with relaying(queues.consumer, streams, log):
                await eventually(lambda log=log: len(log.committed_batches) >= 7 or publishing.done())
    async with relaying(queues.consumer, streams):
        await node.all_committed(streams)


async def test_a_relay_that_waits_takes_over_at_once(
    brokers: Brokers, streams: Streams, queues: Queues[RelayQueue]
) -> None:
    node = Node("n", queues.publisher)
    waiting = (await brokers.queues(shards=SHARDS)).consumer
    async with relaying(queues.consumer, streams) as first:
        await node.publish(5)
        async with relaying(waiting, await brokers.streams()):
            async with asyncio.TaskGroup() as tasks:
                publishing = tasks.create_task(node.publish(40))
                await eventually(lambda: node.confirmed > 15 * SHARDS)
                first.cancel()
                await publishing
            await node.all_committed(streams)


async def test_what_was_committed_but_not_acknowledged_is_not_repeated(
    streams: Streams, queues: Queues[RelayQueue]
) -> None:
    node, faults = Node("n", queues.publisher), StreamsWithFaults(streams)
    async with relaying(queues.consumer, faults):
        await node.publish(3)
        await node.all_committed(streams)
        faults.hang_after.set()
        await node.publish(3)
        await faults.hanging.wait()
    log = Log()
    async with relaying(queues.consumer, streams, log):
        await node.publish(3)
        await node.all_committed(streams)


async def test_while_the_streams_are_away_a_relay_holds_and_keeps_the_order(
    streams: Streams, queues: Queues[RelayQueue]
) -> None:
    node, faults, log = Node("n", queues.publisher), StreamsWithFaults(streams), Log()
    async with relaying(queues.consumer, faults, log):
        for _ in range(3):
            faults.fail_before = faults.fail_after = SHARDS
            await node.publish(3)
            await node.all_committed(streams)
    assert len(log.committed_batches) == len(set(log.committed_batches))
