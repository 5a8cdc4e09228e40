"""The publisher: batches, in order, once each, settled one by one, and never more waiting than allowed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest import mock

import pytest

from broker.envelope import Batch, Publication, Retention, decode_publication, shard_of
from broker.errors import BrokerError, Refused, Unavailable
from gateway.channels import ChannelOptions
from gateway.metrics import NodeMetrics
from gateway.publisher import Publisher, Settled
from gateway.settings import NamespaceSettings, PublisherSettings
from tests.unit.doubles import CommandedQueue, CommandedStreams, SettableClock
from tests.unit.waiting import BOUND_SECONDS, eventually, turns

DURABLE = ChannelOptions(NamespaceSettings(history_size=7, history_ttl=70.0), Retention(7, 70.0))
DIRECT = ChannelOptions(NamespaceSettings(relay="direct"), Retention(0, 0.0))


@dataclass
class Rig:
    """A publisher that runs, and what it said of every publication. Its clock stands still until a test moves it."""

    clock: SettableClock
    publisher: Publisher
    queue: CommandedQueue
    streams: CommandedStreams
    metrics: NodeMetrics
    outcomes: dict[str, BrokerError | None] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def publish(self, *data: str, channel: str = "c", options: ChannelOptions = DURABLE) -> None:
        for text in data:
            self.publisher.publish(channel, options, Publication(text.encode()), self._settle(text))

    def _settle(self, text: str) -> Settled:
        def settled(error: BrokerError | None) -> None:
            assert text not in self.outcomes, "settled twice"
            self.outcomes[text] = error
            self.order.append(text)

        return settled

    async def drained(self) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            await self.publisher.drained()

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


@asynccontextmanager
async def open_rig(queue: CommandedQueue | None = None, **values: float) -> AsyncIterator[Rig]:
    queue, streams, metrics, clock = queue or CommandedQueue(), CommandedStreams(), NodeMetrics(), SettableClock()
    publisher = Publisher("node", queue, streams, PublisherSettings(**values), metrics)
    settable = SimpleNamespace(monotonic=clock, time=clock)
    with mock.patch("gateway.publisher.time", settable):
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(publisher.run())
            yield Rig(clock, publisher, queue, streams, metrics)
            queue.gate.open()
            running.cancel()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as rig:
        yield rig


def texts(batch: Batch) -> list[tuple[str, list[str]]]:
    """What a batch holds: channel and data of every group."""
    return [
        (group.channel, [decode_publication(encoded, 0).data.decode() for encoded in group.publications])
        for group in batch.groups
    ]


# Batches.


async def test_what_is_published_in_one_turn_is_one_batch(rig: Rig) -> None:
    rig.publish("1", "2")
    rig.publish("3", channel="d")
    rig.publish("4")
    assert rig.queue.bodies == []
    await rig.drained()
    (batch,) = rig.queue.batches
    assert texts(batch) == [("c", ["1", "2", "4"]), ("d", ["3"])]
    assert rig.value("gateway_batch_publications_sum") == 4
    assert rig.value("gateway_batch_publications_count") == 1


async def test_idle_lane_sends_at_once(rig: Rig) -> None:
    for text in ("1", "2"):
        rig.publish(text)
        await turns()
    assert [texts(batch) for batch in rig.queue.batches] == [[("c", ["1"])], [("c", ["2"])]]


async def test_what_comes_while_a_batch_is_under_way_is_the_next_one(rig: Rig) -> None:
    rig.queue.gate.shut()
    rig.publish("1")
    await rig.queue.until_handed_in(1)
    for text in ("2", "3"):
        rig.publish(text)
        await turns()
    assert len(rig.queue.bodies) == 1, "two batches of a lane under way"
    rig.queue.gate.open()
    await rig.drained()
    assert [texts(batch) for batch in rig.queue.batches] == [[("c", ["1"])], [("c", ["2", "3"])]]


async def test_group_carries_how_long_it_is_kept(rig: Rig) -> None:
    rig.publish("1")
    await rig.drained()
    assert rig.queue.batches[0].groups[0].retention == Retention(7, 70.0)


async def test_batches_of_a_shard_are_numbered_and_named_after_the_node_and_the_shard() -> None:
    queue = CommandedQueue(3)
    async with open_rig(queue) as rig:
        channels = [f"channel {number}" for number in range(9)]
        for channel in channels * 2:
            rig.publish(f"{channel}{len(rig.outcomes)}{len(queue.bodies)}", channel=channel)
            await turns()
        await rig.drained()
    numbers: dict[str, list[int]] = {}
    for batch in queue.batches:
        numbers.setdefault(batch.publisher, []).append(batch.sequence)
        assert {f"node.{shard_of(group.channel, 3)}" for group in batch.groups} == {batch.publisher}
    assert sorted(numbers) == ["node.0", "node.1", "node.2"]
    assert all(sequence == list(range(1, len(sequence) + 1)) for sequence in numbers.values())


async def test_batch_is_bounded_in_publications() -> None:
    async with open_rig(batch_max_publications=3) as rig:
        rig.publish(*[f"{number}" for number in range(7)])
        await rig.drained()
        assert [len(batch.groups[0].publications) for batch in rig.queue.batches] == [3, 3, 1]
        assert rig.order == [f"{number}" for number in range(7)]


async def test_batch_is_bounded_in_bytes_but_takes_at_least_one() -> None:
    async with open_rig(batch_max_bytes=65_536) as rig:
        rig.publish("a" * 40_000, "b" * 20_000, "c" * 10_000, "d" * 100_000, "e")
        await rig.drained()
        sizes = [[len(text) for text in texts(batch)[0][1]] for batch in rig.queue.batches]
        assert sizes == [[40_000, 20_000], [10_000], [100_000], [1]]


async def test_shard_that_is_slow_does_not_stop_the_others() -> None:
    queue = CommandedQueue(2)
    here, there = (next(f"{n}" for n in range(99) if shard_of(f"{n}", 2) == shard) for shard in range(2))
    async with open_rig(queue) as rig:
        queue.gate.shut()
        rig.publish("slow", channel=here)
        await queue.until_handed_in(1)
        rig.publish("fast", channel=there)
        await queue.until_handed_in(2)
        assert rig.outcomes == {}
        queue.gate.let_one_pass()
        queue.gate.let_one_pass()
        await rig.drained()
        assert rig.outcomes == {"slow": None, "fast": None}


# Settling.


async def test_publication_is_settled_when_its_batch_is_confirmed_and_not_before(rig: Rig) -> None:
    rig.queue.gate.shut()
    rig.publish("1")
    await rig.queue.until_handed_in(1)
    await turns()
    assert rig.outcomes == {}
    rig.queue.gate.open()
    await rig.drained()
    assert rig.outcomes == {"1": None}
    assert rig.value("gateway_publish_confirm_seconds_count") == 1


async def test_publications_are_settled_in_their_order(rig: Rig) -> None:
    for number in range(50):
        rig.publish(f"{number}")
        if number % 7 == 0:
            await turns(2)
    await rig.drained()
    assert rig.order == [f"{number}" for number in range(50)]
    stored = [text for batch in rig.queue.batches for _, group in texts(batch) for text in group]
    assert stored == rig.order


async def test_refused_batch_is_settled_as_refused_and_not_repeated() -> None:
    refused = Refused("full")
    async with open_rig(CommandedQueue(failures=[refused])) as rig:
        rig.publish("1", "2")
        await rig.drained()
        rig.publish("3")
        await rig.drained()
        assert rig.outcomes == {"1": refused, "2": refused, "3": None}
        assert [batch.sequence for batch in rig.queue.batches] == [1, 2]
        assert rig.value("gateway_publish_confirm_seconds_count") == 1, "timed what was never confirmed"


@pytest.mark.parametrize("is_lossy", [True, False], ids=["nothing stored", "only the confirm lost"])
async def test_batch_whose_outcome_is_unknown_is_handed_in_again_before_any_later_one(is_lossy: bool) -> None:
    queue = CommandedQueue(failures=[Unavailable("lost"), Unavailable("lost")], is_lossy=is_lossy)
    async with open_rig(queue) as rig:
        rig.publish("1")
        await queue.until_handed_in(1)
        rig.publish("2", "3")
        await rig.drained()
        assert rig.outcomes == {"1": None, "2": None, "3": None}
        assert [(batch.publisher, batch.sequence) for batch in queue.batches] == [
            ("node.0", 1), ("node.0", 1), ("node.0", 1), ("node.0", 2),
        ]  # fmt: skip
        assert [texts(batch) for batch in queue.batches[:3]] == [[("c", ["1"])]] * 3

        # And the streams take every publication once, however often its batch was stored.
        async with queue.consume(0) as consumer:
            assert len(await consumer.receive()) == (2 if is_lossy else 4)
        for batch in queue.batches:
            await rig.streams.commit(batch)
        assert [publication.data for publication in await rig.streams.kept("c")] == [b"1", b"2", b"3"]


async def test_batch_still_unknown_at_its_deadline_is_given_up_and_the_next_one_tried() -> None:
    unavailable = Unavailable("away")
    async with open_rig(CommandedQueue(failures=[unavailable]), timeout_seconds=10.0) as rig:
        rig.queue.gate.shut()
        rig.publish("1")
        await rig.queue.until_handed_in(1)
        rig.clock.advance(10.0)
        rig.queue.gate.open()
        await rig.drained()
        rig.publish("2")
        await rig.drained()
        assert rig.outcomes == {"1": unavailable, "2": None}
        assert [batch.sequence for batch in rig.queue.batches] == [1, 2], "a number used twice is a repetition"


async def test_publication_that_waited_its_whole_time_behind_others_is_given_up_without_an_attempt() -> None:
    async with open_rig(timeout_seconds=10.0) as rig:
        rig.queue.gate.shut()
        rig.publish("first")
        await rig.queue.until_handed_in(1)
        rig.publish("late")
        rig.clock.advance(9.0)
        rig.publish("in time")
        rig.clock.advance(1.0)
        rig.queue.gate.open()
        await rig.drained()
        assert rig.outcomes["first"] is None, "it is stored, however late that was said"
        assert isinstance(rig.outcomes["late"], Unavailable)
        assert rig.outcomes["in time"] is None
        assert [texts(batch) for batch in rig.queue.batches] == [[("c", ["first"])], [("c", ["in time"])]]


async def test_lane_with_nothing_but_late_publications_is_idle_when_they_are_given_up() -> None:
    async with open_rig(timeout_seconds=10.0, pending_max_bytes=1_048_576) as rig:
        rig.queue.gate.shut()
        rig.publish("first")
        await rig.queue.until_handed_in(1)
        rig.publish("late".ljust(1_000_000))
        rig.clock.advance(10.0)
        rig.queue.gate.open()
        await rig.drained()
        assert len(rig.queue.bodies) == 1
        rig.publish("next".ljust(1_000_000))  # there is room again
        await rig.drained()
        assert len(rig.queue.bodies) == 2


# Bounds.


async def test_past_pending_max_bytes_publishing_is_refused_until_something_is_settled() -> None:
    async with open_rig(pending_max_bytes=1_048_576) as rig:
        rig.queue.gate.shut()
        rig.publish(*[f"{number}".ljust(100_000) for number in range(10)])
        with pytest.raises(Refused, match=r"publisher\.pending_max_bytes"):
            rig.publish("x".ljust(100_000))
        rig.publish("small")
        rig.queue.gate.open()
        await rig.drained()
        assert len(rig.outcomes) == 11
        rig.publish(*[f"again {number}".ljust(100_000) for number in range(10)])
        await rig.drained()
        assert len(rig.outcomes) == 21


@pytest.mark.parametrize("failure", [Refused("full"), Unavailable("away")])
async def test_what_failed_is_not_pending_any_more(failure: BrokerError) -> None:
    queue = CommandedQueue(failures=[failure] * 5)
    async with open_rig(queue, pending_max_bytes=1_048_576, timeout_seconds=0.001) as rig:
        for number in range(5):
            rig.publish(f"{number}".ljust(900_000))
            await rig.drained()
        assert [type(outcome) for outcome in rig.outcomes.values()] == [type(failure)] * 5


async def test_nothing_waits_in_a_publisher_that_is_drained(rig: Rig) -> None:
    await rig.drained()
    rig.queue.gate.shut()
    rig.publish("1")
    draining = asyncio.create_task(rig.publisher.drained())
    await rig.queue.until_handed_in(1)
    await turns()
    assert not draining.done()
    rig.queue.gate.open()
    await draining
    assert rig.outcomes == {"1": None}


# The direct way.


async def test_direct_publications_are_committed_without_the_queue(rig: Rig) -> None:
    kept = ChannelOptions(NamespaceSettings(relay="direct", history_size=5, history_ttl=60.0), Retention(5, 60.0))
    rig.publish("1", "2", options=kept)
    await rig.drained()
    assert rig.outcomes == {"1": None, "2": None}
    assert rig.queue.bodies == []
    assert rig.streams.calls == {"append": 1}
    assert [(one.offset, one.data) for one in await rig.streams.kept("c")] == [(1, b"1"), (2, b"2")]


async def test_direct_publication_is_repeated_while_the_streams_are_away(rig: Rig) -> None:
    rig.streams.away = True
    rig.publish("1", options=DIRECT)
    rig.publish("2", channel="d", options=DURABLE)
    await eventually(lambda: rig.streams.calls.get("append", 0) >= 2)
    assert rig.outcomes == {"2": None}, "the direct way stopped the durable one"
    rig.streams.away = False
    await rig.drained()
    assert rig.outcomes["1"] is None
    assert (await rig.streams.end("c")).offset == 1


async def test_direct_publication_that_the_streams_refuse_is_refused(rig: Rig) -> None:
    rig.streams.refused.add(1)
    rig.publish("1", options=DIRECT)
    await rig.drained()
    assert isinstance(rig.outcomes["1"], Refused)


async def test_direct_and_durable_lanes_are_two_publishers(rig: Rig) -> None:
    # A channel may change its namespace's relay option over a restart; numbers of one must not hide the other's.
    rig.publish("1", options=DIRECT)
    rig.publish("2", options=DURABLE)
    await rig.drained()
    await rig.streams.commit(rig.queue.batches[0])
    assert (await rig.streams.end("c")).offset == 2
