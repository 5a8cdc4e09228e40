"""The hub: every publication to every subscriber, once, in order, without a hole; or it is told that this is over."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.envelope import Batch, ClientInfo, Group, Position, Publication, Retention, encode_publication
from broker.errors import Unavailable
from gateway.channels import ChannelOptions
from gateway.hub import Hub, Subscribed
from gateway.metrics import NodeMetrics
from gateway.recovery import LOST, Recovery
from gateway.settings import HubSettings, NamespaceSettings
from gateway.timers import TimerWheel
from tests.unit.doubles import CommandedStreams, RecordingSubscriber, SettableClock
from tests.unit.waiting import eventually, turns

HISTORY = ChannelOptions(NamespaceSettings(history_size=100, history_ttl=300.0), Retention(128, 300.0))
NO_HISTORY = ChannelOptions(NamespaceSettings(), Retention(128, 60.0))
NOTHING_KEPT = ChannelOptions(NamespaceSettings(relay="direct"), Retention(0, 0.0))
NEVER = 366 * 86_400.0


@dataclass
class Rig:
    """A hub that runs, over streams that do as they are told; the clock stands still until a test moves it."""

    streams: CommandedStreams
    hub: Hub
    metrics: NodeMetrics
    timers: TimerWheel
    clock: SettableClock
    sequence: int = 0
    truth: dict[tuple[str, int], str] = field(default_factory=dict)

    async def commit(
        self, *data: str, channel: str = "c", retention: Retention = HISTORY.retention, age: float = 0.0
    ) -> None:
        """Commit one group of publications, taken `age` seconds ago, and let it be delivered."""
        self.sequence += 1
        now = int((time.time() - age) * 1000)
        encoded = [encode_publication(Publication(text.encode(), ClientInfo("u", "x"), time=now)) for text in data]
        await self.streams.commit(Batch("p", self.sequence, [Group(channel, retention, encoded)]))
        end = await self.streams.end(channel)
        for offset, text in enumerate(data, end.offset - len(data) + 1):
            self.truth[end.epoch, offset] = text
        await turns()

    async def subscribe(
        self,
        subscriber: RecordingSubscriber,
        since: Position | None = None,
        channel: str = "c",
        options: ChannelOptions = HISTORY,
    ) -> Subscribed:
        async with asyncio.timeout(10):
            return await self.hub.subscribe(channel, options, subscriber, since)

    async def subscribed(self, options: ChannelOptions = HISTORY) -> RecordingSubscriber:
        """A subscriber of the channel `c`."""
        subscriber = RecordingSubscriber()
        await self.subscribe(subscriber, options=options)
        return subscriber

    async def miss(self, *data: str, retention: Retention = HISTORY.retention) -> None:
        """Commit a group that this node does not hear."""
        self.streams.deaf = True
        await self.commit(*data, retention=retention)
        self.streams.deaf = False

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and call the timers that are due."""
        self.clock.advance(seconds)
        self.timers.turn()

    def value(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def followed(self) -> int:
        """How many channels the hub follows."""
        return int(self.value("gateway_channels"))


@asynccontextmanager
async def open_rig(
    *, repair_max_bytes: int = 8_388_608, check_seconds: float = NEVER, recovery_max_bytes: int = 10_000
) -> AsyncIterator[Rig]:
    clock, metrics, streams = SettableClock(), NodeMetrics(), CommandedStreams()
    timers = TimerWheel(clock)
    hub_settings = HubSettings(
        linger_seconds=1.0, position_check_seconds=check_seconds, repair_max_bytes=repair_max_bytes
    )
    hub = Hub(streams, timers, hub_settings, metrics, recovery_max_bytes=recovery_max_bytes)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(hub.run())
        yield Rig(streams, hub, metrics, timers, clock)
        streams.gate.open()
        streams.answers.open()
        running.cancel()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as rig:
        yield rig


# Delivery.


async def test_every_subscriber_hears_every_publication_after_its_position_in_order(rig: Rig) -> None:
    first, second = RecordingSubscriber(), RecordingSubscriber()
    await rig.commit("0")
    assert (await rig.subscribe(first)).position == await rig.streams.end("c")
    await rig.commit("1", "2")
    assert (await rig.subscribe(second)).position == await rig.streams.end("c")
    await rig.commit("3")
    assert first.data == [1, 2, 3]
    assert first.offsets == [2, 3, 4]
    assert second.data == [3]


async def test_group_is_encoded_once_for_all(rig: Rig) -> None:
    subscribers = [RecordingSubscriber() for _ in range(3)]
    for subscriber in subscribers:
        await rig.subscribe(subscriber)
    await rig.commit("1", "2")
    frames = {id(frame) for subscriber in subscribers for frame in subscriber.frames}
    assert len(frames) == 1
    assert subscribers[0].frames[0].messages == 2


async def test_channel_without_history_shows_no_offsets(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    await rig.subscribe(subscriber, options=NO_HISTORY)
    await rig.commit("1", retention=NO_HISTORY.retention)
    assert subscriber.data == [1]
    assert "offset" not in subscriber.publications[0]


async def test_channels_do_not_mix(rig: Rig) -> None:
    one, other = RecordingSubscriber(), RecordingSubscriber()
    await rig.subscribe(one, channel="one")
    await rig.subscribe(other, channel="other")
    await rig.commit("1", channel="one")
    await rig.commit("2", channel="other")
    assert (one.data, other.data) == ([1], [2])


async def test_subscriber_that_leaves_hears_nothing_more(rig: Rig) -> None:
    staying, leaving = RecordingSubscriber(), RecordingSubscriber()
    await rig.subscribe(staying)
    await rig.subscribe(leaving)
    rig.hub.unsubscribe("c", leaving)
    rig.hub.unsubscribe("c", leaving)
    await rig.commit("1")
    assert (staying.data, leaving.data) == ([1], [])
    assert rig.value("gateway_subscriptions") == 1


async def test_subscriber_that_leaves_during_a_delivery_disturbs_nobody(rig: Rig) -> None:
    subscribers = [RecordingSubscriber() for _ in range(3)]
    for subscriber in subscribers:
        await rig.subscribe(subscriber)
    subscribers[0].on_deliver = lambda: rig.hub.unsubscribe("c", subscribers[0])
    await rig.commit("1")
    await rig.commit("2")
    assert [subscriber.data for subscriber in subscribers] == [[1], [1, 2], [1, 2]]
    assert rig.value("gateway_subscriptions") == 2


async def test_unsubscribing_from_what_nobody_follows_is_no_fault(rig: Rig) -> None:
    rig.hub.unsubscribe("unknown", RecordingSubscriber())
    assert rig.followed == 0


async def test_group_of_a_channel_that_nobody_follows_is_ignored(rig: Rig) -> None:
    rig.streams.deaf = True
    await rig.subscribe(RecordingSubscriber())
    await rig.commit("1")
    (group,) = rig.streams.unheard
    group.channel = "unknown"
    rig.streams.hear(group)
    assert rig.followed == 1


# Opening and leaving.


async def test_many_subscribers_open_their_channel_once(rig: Rig) -> None:
    rig.streams.gate.shut()
    subscribers = [RecordingSubscriber() for _ in range(20)]
    subscribing = [asyncio.create_task(rig.subscribe(subscriber)) for subscriber in subscribers]
    await turns()
    assert rig.followed == 1
    rig.streams.gate.open()
    await asyncio.gather(*subscribing)
    assert rig.streams.calls == {"subscribe": 1, "positions": 1}
    await rig.commit("1")
    assert all(subscriber.data == [1] for subscriber in subscribers)


async def test_next_subscriber_of_a_followed_channel_asks_nobody(rig: Rig) -> None:
    await rig.subscribe(RecordingSubscriber())
    rig.streams.away = True
    assert (await rig.subscribe(RecordingSubscriber())).position.offset == 0


async def test_many_channels_open_in_one_round_trip(rig: Rig) -> None:
    rig.streams.gate.shut()
    first = asyncio.create_task(rig.subscribe(RecordingSubscriber(), channel="first"))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rest = [asyncio.create_task(rig.subscribe(RecordingSubscriber(), channel=f"{number}")) for number in range(50)]
    await turns()
    rig.streams.gate.open()
    await asyncio.gather(first, *rest)
    assert rig.streams.calls["subscribe"] == 2


async def test_what_is_committed_while_a_channel_opens_is_delivered_or_before_the_position(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    rig.streams.gate.shut()
    subscribing = asyncio.create_task(rig.subscribe(subscriber))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rig.streams.gate.let_one_pass()  # subscribed; next it asks for the position
    await eventually(lambda: rig.streams.gate.waiting == 1)
    await rig.commit("1")
    rig.streams.gate.open()
    await rig.commit("2")
    subscribed = await subscribing
    await rig.commit("3")
    assert subscriber.offsets == list(range(subscribed.position.offset + 1, 4))
    assert 3 in subscriber.offsets


async def test_what_is_heard_while_the_position_is_on_its_way_is_not_forgotten(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    rig.streams.answers.shut()
    subscribing = asyncio.create_task(rig.subscribe(subscriber))
    await eventually(lambda: rig.streams.answers.waiting == 1)  # the answer says 0
    await rig.commit("1", "2")
    rig.streams.answers.open()
    subscribed = await subscribing
    await turns()
    assert list(range(1, subscribed.position.offset + 1)) + subscriber.offsets == [1, 2]
    assert "read" not in rig.streams.calls


async def test_channel_whose_opening_failed_half_way_is_left_again(rig: Rig) -> None:
    rig.streams.gate.shut()
    subscribing = asyncio.create_task(rig.subscribe(RecordingSubscriber()))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rig.streams.gate.let_one_pass()  # subscribed
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rig.streams.away = True
    rig.streams.gate.open()
    with pytest.raises(Unavailable):
        await subscribing
    await turns()
    assert rig.streams.calls["unsubscribe"] == 1
    assert rig.followed == 0


async def test_opening_that_fails_is_unavailable_to_all_and_the_next_attempt_succeeds(rig: Rig) -> None:
    rig.streams.away = True
    subscribers = [RecordingSubscriber() for _ in range(3)]
    failures = await asyncio.gather(*[rig.subscribe(subscriber) for subscriber in subscribers], return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 3
    await turns()
    assert rig.followed == 0
    assert rig.value("gateway_subscriptions") == 0
    rig.streams.away = False
    await rig.subscribe(subscribers[0])
    await rig.commit("1")
    assert [subscriber.data for subscriber in subscribers] == [[1], [], []]


async def test_opening_that_nobody_waits_for_any_more_is_not_in_the_way(rig: Rig) -> None:
    rig.streams.gate.shut()
    subscribing = asyncio.create_task(rig.subscribe(RecordingSubscriber()))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    subscribing.cancel()
    await asyncio.gather(subscribing, return_exceptions=True)
    rig.streams.gate.open()
    await turns()
    rig.pass_time(2.0)
    await turns()
    assert rig.followed == 0
    assert rig.streams.calls["unsubscribe"] == 1


async def test_vacant_channel_lingers_then_is_left(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    await rig.subscribe(subscriber)
    rig.hub.unsubscribe("c", subscriber)
    rig.pass_time(0.9)
    await turns()
    assert rig.followed == 1
    rig.pass_time(0.5)
    await turns()
    assert rig.followed == 0
    assert rig.streams.calls["unsubscribe"] == 1


async def test_subscriber_that_returns_while_the_channel_lingers_keeps_it(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    await rig.subscribe(subscriber)
    rig.hub.unsubscribe("c", subscriber)
    rig.pass_time(0.5)
    await rig.subscribe(subscriber)
    rig.pass_time(2.0)
    await turns()
    assert rig.followed == 1
    await rig.commit("1")
    assert subscriber.data == [1]
    assert rig.streams.calls["subscribe"] == 1


async def test_channel_left_and_opened_again_is_heard(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    for number in range(3):
        await rig.subscribe(subscriber)
        await rig.commit(f"{number}")
        rig.hub.unsubscribe("c", subscriber)
        rig.pass_time(2.0)
        await turns()
    assert subscriber.data == [0, 1, 2]


async def test_channel_opened_again_before_it_was_left_in_redis_is_heard(rig: Rig) -> None:
    # While the worker opens another channel, this one is given up and wanted again: left first, then opened.
    subscriber = RecordingSubscriber()
    await rig.subscribe(subscriber)
    rig.hub.unsubscribe("c", subscriber)
    rig.streams.gate.shut()
    other = asyncio.create_task(rig.subscribe(RecordingSubscriber(), channel="other"))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rig.pass_time(2.0)
    again = asyncio.create_task(rig.subscribe(subscriber))
    await turns()
    rig.streams.gate.open()
    await asyncio.gather(other, again)
    await turns()
    await rig.commit("1")
    assert subscriber.data == [1]


async def test_channel_whose_opening_failed_and_that_is_opened_again_at_once_is_heard(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    rig.streams.gate.shut()
    rig.streams.away = True
    failing = asyncio.create_task(rig.subscribe(subscriber))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    other = asyncio.create_task(rig.subscribe(RecordingSubscriber(), channel="other"))  # the next to open
    await turns()
    rig.streams.gate.let_one_pass()
    with pytest.raises(Unavailable):
        await failing
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rig.streams.away = False
    again = asyncio.create_task(rig.subscribe(subscriber))
    await turns()
    rig.streams.gate.open()
    await asyncio.gather(other, again)
    await turns()
    await rig.commit("1")
    assert subscriber.data == [1]


# Repair.


async def test_gap_is_read_from_the_stream_before_anything_later_is_delivered(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1", "2")
    await rig.commit("3")
    await eventually(lambda: len(subscriber.data) == 3)
    assert subscriber.data == [1, 2, 3]
    assert subscriber.offsets == [1, 2, 3]
    assert subscriber.lost == []
    assert rig.value("gateway_gaps_total", result="found") == 1
    assert rig.value("gateway_gaps_total", result="repaired") == 1
    assert rig.value("gateway_gaps_total", result="lost") == 0


async def test_what_arrives_during_a_repair_is_delivered_once_after_it(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1")
    rig.streams.gate.shut()
    await rig.commit("2")  # the gap is found here; what was read ends after 4
    await eventually(lambda: rig.streams.gate.waiting == 1)
    await rig.commit("3")
    await rig.commit("4")
    assert subscriber.data == []
    rig.streams.gate.open()
    await eventually(lambda: len(subscriber.data) == 4)
    await turns()
    await rig.commit("5")
    assert subscriber.data == [1, 2, 3, 4, 5]


async def test_what_arrives_after_a_repair_has_read_is_delivered_once_after_it(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1")
    rig.streams.answers.shut()
    await rig.commit("2")
    await eventually(lambda: rig.streams.answers.waiting == 1)  # the answer ends with 2
    await rig.commit("3")
    await rig.commit("4")
    rig.streams.answers.open()
    await turns()
    assert subscriber.data == [1, 2, 3, 4]
    assert rig.streams.calls["read"] == 1


async def test_more_than_is_held_after_a_repair_has_read_is_read_in_another(rig_that_holds_little: Rig) -> None:
    rig = rig_that_holds_little
    subscriber = await rig.subscribed()
    await rig.miss("0")
    rig.streams.answers.shut()
    await rig.commit("1")
    await eventually(lambda: rig.streams.answers.waiting == 1)
    for number in range(2, 7):
        await rig.commit(f'"{number:0>40000}"')
    rig.streams.answers.open()
    await eventually(lambda: len(subscriber.data) == 7)
    assert subscriber.offsets == [1, 2, 3, 4, 5, 6, 7]
    assert subscriber.lost == []


async def test_fault_found_after_a_repair_has_read_is_repaired_in_another(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1")
    rig.streams.answers.shut()
    await rig.commit("2")
    await eventually(lambda: rig.streams.answers.waiting == 1)
    await rig.miss("3")
    ahead = asyncio.create_task(rig.subscribe(RecordingSubscriber(), await rig.streams.end("c")))
    await turns()
    rig.streams.answers.open()
    await ahead
    await eventually(lambda: len(subscriber.data) == 3)
    assert subscriber.data == [1, 2, 3]


async def test_repeated_and_overlapping_groups_are_delivered_once(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    rig.streams.deaf = True
    await rig.commit("1", "2")
    await rig.commit("3")
    first, second = rig.streams.unheard
    for group in (first, first, second, first, second, second):
        rig.streams.hear(group)
    assert subscriber.data == [1, 2, 3]


async def test_repair_goes_on_when_the_streams_are_back(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1")
    rig.streams.away = True
    await rig.commit("2")
    await eventually(lambda: rig.streams.calls.get("read", 0) >= 2)
    assert subscriber.data == []
    rig.streams.away = False
    await eventually(lambda: len(subscriber.data) == 2)
    assert subscriber.data == [1, 2]


async def test_gap_longer_than_a_page_is_repaired_whole(rig: Rig) -> None:
    kept = Retention(5000, 300.0)
    subscriber = await rig.subscribed(options=ChannelOptions(HISTORY.settings, kept))
    rig.streams.deaf = True
    for start in range(0, 2500, 500):
        await rig.commit(*[f"{number}" for number in range(start, start + 500)], retention=kept)
    rig.streams.deaf = False
    await rig.commit("2500", retention=kept)
    await eventually(lambda: len(subscriber.data) == 2501)
    assert subscriber.data == list(range(2501))
    assert subscriber.lost == []


async def test_more_than_is_held_during_a_repair_is_read_again(rig_that_holds_little: Rig) -> None:
    rig = rig_that_holds_little
    subscriber = await rig.subscribed()
    await rig.miss("0")
    rig.streams.gate.shut()
    long = [f'"{number:0>40000}"' for number in range(1, 6)]
    for text in long:
        await rig.commit(text)
    await eventually(lambda: rig.streams.gate.waiting == 1)
    rig.streams.gate.open()
    await eventually(lambda: len(subscriber.data) == 6)
    await turns()
    assert subscriber.offsets == [1, 2, 3, 4, 5, 6]
    assert subscriber.lost == []


@pytest.fixture
async def rig_that_holds_little() -> AsyncIterator[Rig]:
    async with open_rig(repair_max_bytes=65_536) as rig:
        yield rig


async def test_gap_that_was_trimmed_is_lost_and_said_so(rig: Rig) -> None:
    options = ChannelOptions(HISTORY.settings, Retention(2, 300.0))
    subscriber = await rig.subscribed(options=options)
    rig.streams.deaf = True
    for number in range(5):
        await rig.commit(f"{number}", retention=options.retention)
    rig.streams.deaf = False
    await rig.commit("5", retention=options.retention)
    await eventually(lambda: bool(subscriber.lost))
    assert subscriber.lost == ["c"]
    assert subscriber.data == [], "a part of what was missed"
    assert rig.value("gateway_gaps_total", result="lost") == 1
    assert rig.value("gateway_subscriptions") == 0


async def test_gap_that_expired_is_lost_and_said_so(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1", retention=Retention(0, 0.0))
    await rig.commit("2")
    await eventually(lambda: subscriber.lost == ["c"])
    assert subscriber.data == []


async def test_lost_subscribers_come_back_and_hear_on(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1", retention=Retention(0, 0.0))
    await rig.commit("2")
    await eventually(lambda: subscriber.lost == ["c"])
    await turns()
    assert (await rig.subscribe(subscriber)).position == await rig.streams.end("c")
    await rig.commit("3")
    assert subscriber.data == [3]


async def test_gap_in_a_channel_of_which_nothing_is_kept_is_passed_over(rig: Rig) -> None:
    subscriber = await rig.subscribed(options=NOTHING_KEPT)
    await rig.miss("1", retention=NOTHING_KEPT.retention)
    await rig.commit("2", retention=NOTHING_KEPT.retention)
    await rig.commit("3", retention=NOTHING_KEPT.retention)
    assert subscriber.data == [2, 3]
    assert subscriber.lost == []
    assert rig.streams.calls.get("read", 0) == 0
    assert rig.value("gateway_gaps_total", result="lost") == 1


async def test_new_epoch_heard_live_ends_every_subscription(rig: Rig) -> None:
    subscribers = [await rig.subscribed() for _ in range(2)]
    await rig.commit("1")
    rig.streams.forget("c")
    await rig.commit("2")
    assert [(subscriber.data, subscriber.lost) for subscriber in subscribers] == [([1], ["c"])] * 2
    assert (await rig.subscribe(subscribers[0])).position == await rig.streams.end("c")
    await rig.commit("3")
    assert subscribers[0].data == [1, 3]


async def test_subscriber_told_that_it_is_lost_may_come_back_at_once(rig: Rig) -> None:
    subscriber, returned = await rig.subscribed(), list[Subscribed]()
    tasks = []

    async def come_back() -> None:
        returned.append(await rig.subscribe(subscriber))

    subscriber.on_lose = lambda: tasks.append(asyncio.create_task(come_back()))
    rig.streams.forget("c")
    await rig.commit('"a"')
    await asyncio.gather(*tasks)
    await rig.commit('"b"')
    assert len(returned) == 1
    assert subscriber.data == ["b"]


# Suspects.


async def test_suspected_channel_whose_last_publication_was_lost_is_repaired(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.commit("1")
    await rig.miss("2", "3")
    rig.streams.suspect(["c"])
    await eventually(lambda: len(subscriber.data) == 3)
    assert subscriber.data == [1, 2, 3]


async def test_suspected_channel_that_missed_more_than_a_page_is_repaired_whole(rig: Rig) -> None:
    kept = Retention(5000, 300.0)
    subscriber = await rig.subscribed(options=ChannelOptions(HISTORY.settings, kept))
    for start in range(0, 2500, 500):
        await rig.miss(*[f"{number}" for number in range(start, start + 500)], retention=kept)
    rig.streams.suspect(["c"])
    await eventually(lambda: len(subscriber.data) == 2500)
    assert subscriber.data == list(range(2500))


async def test_suspected_channel_in_which_nothing_was_lost_is_not_read(rig: Rig) -> None:
    await rig.subscribed()
    await rig.commit("1")
    rig.streams.suspect(["c", "unknown"])
    await eventually(lambda: rig.streams.calls["positions"] == 2)
    await turns()
    assert "read" not in rig.streams.calls


async def test_suspected_channel_that_began_anew_is_lost(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.commit("1")
    rig.streams.forget("c")
    rig.streams.suspect(["c"])
    await eventually(lambda: subscriber.lost == ["c"])
    assert (await rig.subscribe(subscriber)).position == await rig.streams.end("c")


async def test_suspicion_outlasts_an_outage(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1")
    rig.streams.away = True
    rig.streams.suspect(["c"])
    await eventually(lambda: rig.streams.calls["positions"] == 2)
    rig.streams.away = False
    await eventually(lambda: subscriber.data == [1])
    assert subscriber.lost == []


async def test_every_channel_is_compared_now_and_then_though_nothing_is_heard() -> None:
    async with open_rig(check_seconds=0.05) as rig:
        subscriber = await rig.subscribed()
        await rig.miss("1")
        await eventually(lambda: subscriber.data == [1])
        assert subscriber.lost == []


async def test_suspected_channel_of_which_nothing_is_kept_goes_on_from_its_end(rig: Rig) -> None:
    subscriber = await rig.subscribed(options=NOTHING_KEPT)
    await rig.miss("1", retention=NOTHING_KEPT.retention)
    rig.streams.suspect(["c"])
    await eventually(lambda: rig.streams.calls.get("read", 0) >= 1)
    await turns()
    await rig.commit("2", retention=NOTHING_KEPT.retention)
    assert (subscriber.data, subscriber.lost) == ([2], [])


# Recovery.


async def test_recovering_subscriber_gets_what_it_missed_then_what_comes(rig: Rig) -> None:
    await rig.commit("1", "2", "3")
    end = await rig.streams.end("c")
    subscriber = RecordingSubscriber()
    subscribed = await rig.subscribe(subscriber, Position(end.epoch, 1))
    assert subscribed.recovery is not None
    assert subscribed.recovery.recovered
    assert [one.offset for one in subscribed.recovery.publications] == [2, 3]
    assert subscribed.position == end
    await rig.commit("4")
    assert subscriber.offsets == [4]


async def test_subscriber_that_missed_nothing_recovers_without_reading(rig: Rig) -> None:
    await rig.commit("1")
    subscribed = await rig.subscribe(RecordingSubscriber(), await rig.streams.end("c"))
    assert subscribed.recovery == Recovery(recovered=True)
    assert "read" not in rig.streams.calls


async def test_subscriber_that_does_not_recover_is_told_nothing_of_the_past(rig: Rig) -> None:
    await rig.commit("1")
    assert (await rig.subscribe(RecordingSubscriber())).recovery is None


LOSSES: list[tuple[str, Position | int, Retention, float]] = [
    ("another epoch", Position("other", 1), HISTORY.retention, 0.0),
    ("no epoch", Position("", 0), HISTORY.retention, 0.0),
    ("ahead of the stream", 99, HISTORY.retention, 0.0),
    ("before the first", -1, HISTORY.retention, 0.0),
    ("trimmed", 1, Retention(2, 300.0), 0.0),
    ("past the history size", 1, Retention(1000, 300.0), 0.0),
    ("past the history ttl, in the repair window", 3, HISTORY.retention, 301.0),
]


@pytest.mark.parametrize(("since", "retention", "age"), [loss[1:] for loss in LOSSES], ids=[loss[0] for loss in LOSSES])
async def test_position_that_cannot_be_recovered_is_lost_whole(
    rig: Rig, since: Position | int, retention: Retention, age: float
) -> None:
    options = ChannelOptions(NamespaceSettings(history_size=4, history_ttl=300.0), retention)
    for number in range(6):
        await rig.commit(f"{number}", retention=retention, age=age)
    end = await rig.streams.end("c")
    asked = Position(end.epoch, since) if isinstance(since, int) else since
    subscriber = RecordingSubscriber()
    subscribed = await rig.subscribe(subscriber, asked, options=options)
    assert subscribed.recovery == LOST
    assert subscribed.position == end, "it goes on live from the end"
    await rig.commit("6", retention=retention)
    assert subscriber.data == [6]


async def test_missing_more_bytes_than_an_outbox_holds_is_lost(rig: Rig) -> None:
    for _ in range(3):
        await rig.commit(f'"{"x" * 4000}"')
    end = await rig.streams.end("c")
    assert (await rig.subscribe(RecordingSubscriber(), Position(end.epoch, 0))).recovery == LOST
    recovery = (await rig.subscribe(RecordingSubscriber(), Position(end.epoch, 1))).recovery
    assert recovery is not None
    assert recovery.recovered


async def test_client_ahead_of_the_hub_makes_it_read_on_for_everybody(rig: Rig) -> None:
    # Its last node had heard what this one has not.
    first, second = await rig.subscribed(), RecordingSubscriber()
    await rig.miss("1", "2")
    end = await rig.streams.end("c")
    subscribed = await rig.subscribe(second, end)
    assert subscribed == Subscribed(end, Recovery(recovered=True))
    assert first.data == [1, 2]
    assert second.data == []
    await rig.commit("3")
    assert (first.data, second.data) == ([1, 2, 3], [3])


async def test_client_ahead_in_the_middle_recovers_the_rest(rig: Rig) -> None:
    first = await rig.subscribed()
    await rig.miss("1", "2", "3")
    end = await rig.streams.end("c")
    subscriber = RecordingSubscriber()
    subscribed = await rig.subscribe(subscriber, Position(end.epoch, 2))
    assert subscribed.recovery is not None
    assert [one.offset for one in subscribed.recovery.publications] == [3]
    assert first.data == [1, 2, 3]


async def test_what_is_committed_while_a_subscriber_recovers_comes_once(rig: Rig) -> None:
    await rig.subscribed()
    await rig.commit("1", "2")
    end = await rig.streams.end("c")
    rig.streams.gate.shut()
    subscriber = RecordingSubscriber()
    recovering = asyncio.create_task(rig.subscribe(subscriber, Position(end.epoch, 0)))
    await eventually(lambda: rig.streams.gate.waiting == 1)
    await rig.commit("3")
    rig.streams.gate.open()
    subscribed = await recovering
    await rig.commit("4")
    assert subscribed.recovery is not None
    recovered = [one.offset for one in subscribed.recovery.publications]
    assert recovered == list(range(1, subscribed.position.offset + 1))
    assert recovered + subscriber.offsets == [1, 2, 3, 4]


async def test_more_than_a_page_is_recovered_whole() -> None:
    kept = Retention(1000, 300.0)
    options = ChannelOptions(NamespaceSettings(history_size=1000, history_ttl=300.0), kept)
    async with open_rig(recovery_max_bytes=1_000_000) as rig:
        for start in range(0, 600, 100):
            await rig.commit(*[f"{number}" for number in range(start, start + 100)], retention=kept)
        end = await rig.streams.end("c")
        subscribed = await rig.subscribe(RecordingSubscriber(), Position(end.epoch, 0), options=options)
        assert subscribed.recovery is not None
        assert [one.offset for one in subscribed.recovery.publications] == list(range(1, 601))


async def test_far_more_than_can_be_recovered_is_not_read_to_its_end() -> None:
    kept = Retention(10_000, 300.0)
    options = ChannelOptions(NamespaceSettings(history_size=10_000, history_ttl=300.0), kept)
    async with open_rig() as rig:
        for start in range(0, 5000, 500):
            await rig.commit(*[f"{number}" for number in range(start, start + 500)], retention=kept)
        end = await rig.streams.end("c")
        assert (await rig.subscribe(RecordingSubscriber(), Position(end.epoch, 0), options=options)).recovery == LOST
        assert rig.streams.calls["read"] < 3


async def test_channel_left_during_its_repair_is_repaired_no_more(rig: Rig) -> None:
    subscriber = await rig.subscribed()
    await rig.miss("1")
    rig.streams.away = True
    await rig.commit("2")
    await eventually(lambda: rig.streams.calls.get("read", 0) >= 1)
    rig.hub.unsubscribe("c", subscriber)
    rig.pass_time(2.0)
    await turns()
    assert rig.followed == 0
    rig.streams.away = False
    returned = await rig.subscribed()
    await rig.commit("3")
    assert (subscriber.data, returned.data) == ([], [3])


async def test_what_is_heard_after_a_recovery_has_read_belongs_to_it(rig: Rig) -> None:
    await rig.subscribed()
    await rig.commit("1", "2")
    end = await rig.streams.end("c")
    rig.streams.answers.shut()
    subscriber = RecordingSubscriber()
    recovering = asyncio.create_task(rig.subscribe(subscriber, Position(end.epoch, 0)))
    await eventually(lambda: rig.streams.answers.waiting == 1)  # the answer ends with 2
    await rig.commit("3")
    rig.streams.answers.open()
    subscribed = await recovering
    await rig.commit("4")
    assert subscribed.recovery is not None
    assert [one.offset for one in subscribed.recovery.publications] == [1, 2, 3]
    assert subscriber.offsets == [4]


async def test_recovery_without_streams_is_unavailable_and_leaves_nothing_behind(rig: Rig) -> None:
    subscriber = RecordingSubscriber()
    await rig.commit("1")
    end = await rig.streams.end("c")
    other = await rig.subscribed()
    rig.streams.away = True
    with pytest.raises(Unavailable):
        await rig.subscribe(subscriber, Position(end.epoch, 0))
    assert rig.value("gateway_subscriptions") == 1
    await rig.commit("2")
    assert (subscriber.data, other.data) == ([], [2])


# Metrics.


async def test_live_groups_are_timed_and_counted(rig: Rig) -> None:
    await rig.subscribed()
    await rig.commit("1", "2", age=2.0)
    assert rig.value("gateway_commit_deliver_seconds_count") == 1
    assert rig.value("gateway_end_to_end_seconds_count") == 2
    assert 4.0 <= rig.value("gateway_end_to_end_seconds_sum") < 8.0


# Anything that may happen on the way from Redis.

steps = st.one_of(
    st.tuples(st.just("commit"), st.integers(1, 4)),
    st.tuples(st.just("hear"), st.integers(0, 1000)),
    st.tuples(st.just("lose"), st.integers(0, 1000)),
    st.tuples(st.just("subscribe"), st.just(0)),
    st.tuples(st.just("recover"), st.integers(0, 1000)),
    st.tuples(st.just("unsubscribe"), st.integers(0, 1000)),
    st.tuples(st.just("suspect"), st.just(0)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("pass time"), st.integers(0, 3)),
)


@dataclass
class Client:
    """A client as the protocol wants it: it keeps its position, and notes what it heard."""

    subscriber: RecordingSubscriber
    start: Position
    heard_before: list[tuple[int, str]]
    left: bool = False

    def check(self, truth: dict[tuple[str, int], str]) -> int:
        """Fail unless all that was heard is what was committed, once, in order; return the last offset heard."""
        live = [(one["offset"], str(one["data"])) for one in self.subscriber.publications]
        heard = self.heard_before + live
        assert [offset for offset, _ in live] == list(range(self.start.offset + 1, self.start.offset + 1 + len(live)))
        assert [text for _, text in heard] == [truth[self.start.epoch, offset] for offset, _ in heard]
        return live[-1][0] if live else self.start.offset


@settings(max_examples=150)
@given(st.lists(steps, max_size=40), st.sampled_from([2, 8, 100]))
def test_whatever_gets_lost_repeated_or_reordered_every_subscriber_sees_all_in_order_or_is_told(
    script: list[tuple[str, int]], kept: int
) -> None:
    asyncio.run(play(script, kept))


class Play:
    """What the steps of a script do to a rig, and to its clients."""

    def __init__(self, rig: Rig, kept: int) -> None:
        self.rig = rig
        self.options = ChannelOptions(NamespaceSettings(history_size=kept, history_ttl=300.0), Retention(kept, 300.0))
        self.clients: list[Client] = []
        self.commits = 0

    async def act(self, step: str, argument: int) -> None:
        """Take one step; one that has nothing to act on is passed over."""
        groups = self.rig.streams.unheard
        match step:
            case "commit":
                self.commits += 1
                data = [f"{self.commits}{index}" for index in range(argument)]
                await self.rig.commit(*data, retention=self.options.retention)
            case "hear" if groups:
                self.rig.streams.hear(groups[argument % len(groups)])  # it stays: it may come again, and late
            case "lose" if groups:
                del groups[argument % len(groups)]
            case "suspect":
                self.rig.streams.suspect(["c"])
            case "forget":
                self.rig.streams.forget("c")
            case "pass time":
                self.rig.pass_time(argument)
            case _:
                await self.act_as_client(step, argument)

    async def act_as_client(self, step: str, argument: int) -> None:
        subscriber = RecordingSubscriber()
        match step:
            case "subscribe":
                subscribed = await self.rig.subscribe(subscriber, options=self.options)
                self.clients.append(Client(subscriber, subscribed.position, []))
            case "recover" if self.clients:
                previous = self.clients[argument % len(self.clients)]
                since = Position(previous.start.epoch, previous.check(self.rig.truth))
                subscribed = await self.rig.subscribe(subscriber, since, options=self.options)
                self.clients.append(Client(subscriber, subscribed.position, recovered_of(subscribed, since)))
            case "unsubscribe" if self.clients:
                leaving = self.clients[argument % len(self.clients)]
                self.rig.hub.unsubscribe("c", leaving.subscriber)
                leaving.left = True


async def play(script: list[tuple[str, int]], kept: int) -> None:
    async with open_rig() as rig:
        rig.streams.deaf = True
        scene = Play(rig, kept)
        for number, (step, argument) in enumerate(script):
            await scene.act(step, argument)
            if number % 3:  # now and then two things happen in one turn
                await turns(3)
        await turns()
        rig.streams.suspect(["c"])
        await turns(20)
        end = await rig.streams.end("c")
        for client in scene.clients:
            last = client.check(rig.truth)
            assert client.left or client.subscriber.lost or Position(client.start.epoch, last) == end


def recovered_of(subscribed: Subscribed, since: Position) -> list[tuple[int, str]]:
    """What a recovery gave: everything from `since` to the position, or nothing."""
    assert subscribed.recovery is not None
    heard = [(one.offset, one.data.decode()) for one in subscribed.recovery.publications]
    if subscribed.recovery.recovered:
        assert subscribed.position.epoch == since.epoch
        assert [offset for offset, _ in heard] == list(range(since.offset + 1, subscribed.position.offset + 1))
    else:
        assert heard == []
    return heard
