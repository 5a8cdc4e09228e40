"""Streams: what followers hear."""

import asyncio
import secrets

import pytest

from broker.envelope import Retention
from broker.ports import Streams

from .brokers import Brokers, ServerBrokers
from .support import NOT_KEPT, Ear, Sentinel, batch, eventually, everything, numbered, placed
from .test_streams import NAMES


@pytest.fixture
def sentinel(streams: Streams, ear: Ear) -> Sentinel:
    """Tells when all was heard."""
    return Sentinel(streams, ear)


async def test_what_is_committed_after_subscribe_is_heard_in_order(streams: Streams, ear: Ear) -> None:
    await streams.append([batch(1, {"a": [b"before"]})])
    await streams.subscribe(["a"])
    for sequence in range(2, 102):
        await streams.append([batch(sequence, {"a": [b"%d" % sequence] * 2})])
    await eventually(lambda: len(ear.heard("a")) >= 200)
    everything_after = placed((await streams.read("a", 1, 1000)).publications)
    assert ear.heard("a") == everything_after
    assert ear.suspicions("a") == 0


async def test_a_group_is_heard_as_one_with_its_epoch_and_offsets(streams: Streams, ear: Ear) -> None:
    await streams.subscribe(["a"])
    await streams.append([batch(1, {"a": numbered(3)}), batch(2, {"a": [b"4"]})])
    await eventually(lambda: len(ear.groups("a")) == 2)
    heard = [(group.epoch, group.offset, group.last_offset) for group in ear.groups("a")]
    end = (await everything(streams, "a")).end
    assert heard == [(end.epoch, 1, 3), (end.epoch, 4, 4)]
    assert placed(ear.groups("a")[0].publications) == list(enumerate(numbered(3), 1))
    assert all(group.committed > 1_600_000_000 for group in ear.groups("a"))


async def test_a_repetition_is_not_heard_again(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    await streams.subscribe(["a"])
    for _ in range(5):
        await streams.append([batch(1, {"a": [b"once"]})] * 2)
    await sentinel.passed()
    assert ear.heard("a") == [(1, b"once")]


async def test_what_is_not_kept_is_heard(streams: Streams, ear: Ear) -> None:
    await streams.subscribe(["a"])
    for sequence in (1, 2):
        await streams.append([batch(sequence, {"a": numbered(2)}, retention=NOT_KEPT)])
    await eventually(lambda: len(ear.heard("a")) == 4)
    assert ear.heard("a") == [(1, b"1"), (2, b"2"), (3, b"1"), (4, b"2")]


async def test_what_is_trimmed_at_once_is_heard_whole(streams: Streams, ear: Ear) -> None:
    await streams.subscribe(["a"])
    await streams.append([batch(1, {"a": numbered(100)}, retention=Retention(2, 600))])
    await eventually(lambda: ear.groups("a"))
    assert ear.heard("a") == list(enumerate(numbered(100), 1))


async def test_an_empty_group_tells_nobody(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    await streams.subscribe(["a"])
    await streams.append([batch(1, {"a": []})])
    await sentinel.passed()
    assert ear.groups("a") == []


async def test_only_subscribed_channels_are_heard(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    await streams.subscribe(["a", "b"])
    await streams.append([batch(1, {"a": [b"a"], "b": [b"b"], "c": [b"c"], "aa": [b"aa"], "*": [b"*"]})])
    await sentinel.passed()
    assert {event.channel for event in ear.events if not isinstance(event, frozenset)} == {"a", "b", "sentinel"}


async def test_every_name_is_heard_as_itself(streams: Streams, ear: Ear) -> None:
    await streams.subscribe(NAMES)
    for sequence, name in enumerate(NAMES, 1):
        await streams.append([batch(sequence, {name: [name.encode()]})])
    await eventually(lambda: len(ear.events) >= len(NAMES))
    assert [ear.heard(name) for name in NAMES] == [[(1, name.encode())] for name in NAMES]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\n", b"e 1 1 1.0\n", bytes(range(256)), b"\xdd\x00\x00\x00\x01", secrets.token_bytes(1 << 20)],
    ids=["empty", "NUL", "newline", "header", "every byte", "msgpack", "1 MiB"],
)
async def test_any_data_is_heard_as_it_was(streams: Streams, ear: Ear, data: bytes) -> None:
    await streams.subscribe(["a"])
    await streams.append([batch(1, {"a": [data, b"between", data]})])
    await eventually(lambda: ear.groups("a"))
    assert ear.heard("a") == [(1, data), (2, b"between"), (3, data)]


async def test_many_channels_are_subscribed_and_unsubscribed_at_once(
    streams: Streams, ear: Ear, sentinel: Sentinel
) -> None:
    channels = [f"channel-{number}" for number in range(1_700)]
    await streams.subscribe(channels)
    await streams.append([batch(1, {channel: [b"x"] for channel in channels})])
    await eventually(lambda: len(ear.events) >= len(channels))
    await streams.unsubscribe(channels[:-1])
    await streams.append([batch(2, {channel: [b"y"] for channel in channels})])
    await sentinel.passed()
    assert [ear.heard(channel) for channel in channels[:-1]] == [[(1, b"x")]] * (len(channels) - 1)
    assert ear.heard(channels[-1]) == [(1, b"x"), (2, b"y")]


async def test_subscribing_twice_is_hearing_once(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    await streams.subscribe(["a", "a"])
    await streams.subscribe(["a", "b"])
    await streams.append([batch(1, {"a": [b"once"]})])
    await sentinel.passed()
    assert ear.heard("a") == [(1, b"once")]


async def test_concurrent_subscribes_of_one_channel_all_return(streams: Streams, ear: Ear) -> None:
    async with asyncio.timeout(5):
        await asyncio.gather(*(streams.subscribe(["a", f"other-{number}"]) for number in range(5)))
    await streams.append([batch(1, {"a": [b"x"], "other-3": [b"x"]})])
    await eventually(lambda: ear.heard("a") and ear.heard("other-3"))


async def test_nothing_is_heard_after_unsubscribe(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    await streams.subscribe(["a", "b"])
    await streams.unsubscribe(["a"])
    await streams.append([batch(1, {"a": [b"a"], "b": [b"b"]})])
    await sentinel.passed()
    assert (ear.heard("a"), ear.heard("b")) == ([], [(1, b"b")])


async def test_what_is_under_way_is_not_heard_after_unsubscribe(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    for sequence in range(1, 51):
        await streams.subscribe(["a"])
        await streams.append([batch(sequence, {"a": [b"x"]})])
        await streams.unsubscribe(["a"])
        heard = len(ear.heard("a"))
        await sentinel.passed()
        assert len(ear.heard("a")) == heard


async def test_a_channel_can_be_subscribed_again(streams: Streams, ear: Ear, sentinel: Sentinel) -> None:
    for sequence in range(1, 11):
        await streams.subscribe(["a"])
        await streams.append([batch(2 * sequence, {"a": [b"heard"]})])
        await sentinel.passed()
        await streams.unsubscribe(["a"])
        await streams.append([batch(2 * sequence + 1, {"a": [b"not heard"]})])
    await sentinel.passed()
    assert ear.heard("a") == [(offset, b"heard") for offset in range(1, 21, 2)]


async def test_unsubscribing_what_was_never_subscribed_does_nothing(streams: Streams, ear: Ear) -> None:
    await streams.subscribe(["a"])
    await streams.unsubscribe(["b"])
    await streams.append([batch(1, {"a": [b"x"]})])
    await eventually(lambda: ear.heard("a"))


async def test_every_follower_hears_the_one_order(brokers: Brokers) -> None:
    nodes = [await brokers.streams() for _ in range(3)]
    ears = {id(node): Ear() for node in nodes}  # in memory they are one
    for node in nodes:
        node.follow(ears[id(node)])
        await node.subscribe(["a", "b"])

    async def publish(name: str, node: Streams) -> None:
        for sequence in range(1, 31):
            groups = {"a": numbered(2, f"{name}{sequence}-"), "b": [name.encode()]}
            await node.append([batch(sequence, groups, publisher=name)])

    await asyncio.gather(*(publish(name, nodes[index % 3]) for index, name in enumerate("pqrstu")))
    for channel, count in (("a", 360), ("b", 180)):
        order = placed((await everything(nodes[0], channel)).publications)
        assert len(order) == count
        for ear in {id(ear): ear for ear in (ears[id(node)] for node in nodes)}.values():
            await eventually(lambda ear=ear, channel=channel, count=count: len(ear.heard(channel)) >= count)
            assert ear.heard(channel) == order


@pytest.mark.servers
async def test_nodes_hear_each_other_and_unsubscribe_apart(server_brokers: ServerBrokers) -> None:
    one, two = await server_brokers.streams(), await server_brokers.streams()
    ears = Ear(), Ear()
    for node, ear in zip((one, two), ears, strict=True):
        node.follow(ear)
        await node.subscribe(["a"])
    await one.append([batch(1, {"a": [b"1"]})])
    await two.append([batch(2, {"a": [b"2"]})])
    for ear in ears:
        await eventually(lambda ear=ear: ear.heard("a") == [(1, b"1"), (2, b"2")])
    await one.unsubscribe(["a"])
    await one.append([batch(3, {"a": [b"3"]})])
    await eventually(lambda: ears[1].heard("a")[2:] == [(3, b"3")])
    await Sentinel(one, ears[0]).passed()
    assert len(ears[0].heard("a")) == 2
