"""RedisStreams while Redis is killed, frozen, emptied, full, or disturbed by others."""

import asyncio
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.envelope import Batch, Publication, encode_committed, encode_publication
from broker.errors import Refused, Unavailable
from broker.ports import Streams
from broker.redis import RedisStreams
from deploy.cluster import Redis

from .brokers import ServerBrokers
from .support import Ear, Sentinel, batch, eventually, everything, insist, numbered, placed, running

pytestmark = pytest.mark.servers

TIMEOUT = 1.0


@pytest.fixture
def timeout() -> float:
    return TIMEOUT


@pytest.fixture
def brokers(server_brokers: ServerBrokers) -> ServerBrokers:
    server_brokers.redis_heartbeat = 0.5
    return server_brokers


@pytest.fixture
async def streams(brokers: ServerBrokers) -> RedisStreams:
    return await brokers.streams()


def topic(brokers: ServerBrokers, channel: str) -> str:
    """The pub/sub channel of a channel, as the docstring of broker/redis.py names it."""
    return f"{brokers.prefix}:{{c{channel}}}"


async def hears_again(streams: Streams, ear: Ear, channel: str, sequence: int) -> None:
    """Append until it is heard live."""
    heard = len(ear.heard(channel))
    await insist(lambda: streams.append([batch(sequence, {channel: [b"again"]}, publisher="hears again")]))
    await eventually(lambda: len(ear.heard(channel)) > heard)


async def raises_unavailable(call: Callable[[], Awaitable[object]], within: float) -> None:
    """Hold a call to raising Unavailable, and that in time."""
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await call()
    assert time.monotonic() - began < within


class TestKilled:
    async def test_the_same_batch_again_commits_once(self, redis_server: Redis, streams: RedisStreams) -> None:
        first, second = batch(1, {"a": [b"1"], "b": [b"1"]}), batch(2, {"a": [b"2"], "b": [b"2"]})
        await streams.append([first])
        before = await streams.positions(["a", "b"])
        redis_server.kill()
        await raises_unavailable(lambda: streams.append([second]), 3 * TIMEOUT)
        await raises_unavailable(lambda: streams.append([second]), 3 * TIMEOUT)
        await raises_unavailable(lambda: everything(streams, "a"), 3 * TIMEOUT)
        await raises_unavailable(lambda: streams.positions(["a"]), 3 * TIMEOUT)
        await asyncio.to_thread(redis_server.start)
        for _ in range(2):
            await insist(lambda: streams.append([first, second]))
        for channel, position in zip("ab", before, strict=True):
            page = await everything(streams, channel)
            assert placed(page.publications) == [(1, b"1"), (2, b"2")]
            assert page.end.epoch == position.epoch

    async def test_mid_stream_every_batch_commits_once_in_order(
        self, redis_server: Redis, streams: RedisStreams
    ) -> None:
        batches = [batch(number, {"a": [b"%d" % number]}) for number in range(1, 1001)]
        committed = 0

        async def commit() -> None:
            nonlocal committed
            for one in batches:
                await insist(lambda one=one: streams.append([one]))
                committed += 1

        async with running(commit()) as committing:
            for kill_at in (100, 400):
                await eventually(lambda kill_at=kill_at: committed >= kill_at)
                redis_server.kill()
                await asyncio.to_thread(redis_server.start)
            await committing
        assert placed((await everything(streams, "a")).publications) == list(enumerate(numbered(1000), 1))

    async def test_followers_become_suspect_and_hear_again(
        self, brokers: ServerBrokers, redis_server: Redis, streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a", "b"])
        await streams.append([batch(1, {"a": [b"1"], "b": [b"1"]})])
        await eventually(lambda: ear.heard("a") and ear.heard("b"))
        redis_server.kill()
        await eventually(lambda: not streams.subscriptions.connected)
        await streams.unsubscribe(["b"])  # takes effect though the engine is away
        with pytest.raises(Unavailable):
            await streams.subscribe(["c"])
        await asyncio.to_thread(redis_server.start)
        await eventually(lambda: ear.suspicions("a"))
        assert brokers.reconnections == ["redis"]
        await streams.append([batch(2, {"a": [b"2"], "b": [b"2"], "c": [b"2"]})])
        await eventually(lambda: (2, b"2") in ear.heard("a"))
        await Sentinel(streams, ear).passed()
        assert (ear.heard("b"), ear.suspicions("b")) == ([(1, b"1")], 0)
        assert (ear.heard("c"), ear.suspicions("c")) == ([], 0)

    async def test_started_again_without_its_data_epochs_are_new(
        self, redis_server: Redis, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a"])
        await streams.append([batch(number, {"a": [b"%d" % number]}) for number in range(1, 6)])
        (before,) = await streams.positions(["a"])
        config: Any = redis_client.config_get("dir")
        redis_server.kill()
        shutil.rmtree(Path(config["dir"]))
        await asyncio.to_thread(redis_server.start)
        await eventually(lambda: ear.suspicions("a"))
        page = await insist(lambda: everything(streams, "a"))
        assert (page.end.offset, page.publications) == (0, [])
        assert page.end.epoch != before.epoch
        await streams.append([batch(6, {"a": [b"6"]})])
        assert placed((await everything(streams, "a")).publications) == [(1, b"6")]
        await eventually(lambda: ear.groups("a")[-1].epoch == page.end.epoch)


class TestLosingPubSub:
    async def test_followers_become_suspect_and_hear_again(
        self, brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a"])
        for round_ in range(1, 6):
            redis_client.client_kill_filter(_type="pubsub")
            await eventually(lambda round_=round_: ear.suspicions("a") == round_)
            await hears_again(streams, ear, "a", round_)
        assert brokers.reconnections == ["redis"] * 5

    async def test_every_channel_becomes_suspect(self, redis_client: "redis.Redis", streams: RedisStreams) -> None:
        ear = Ear()
        streams.follow(ear)
        channels = [f"channel-{number}" for number in range(1_200)]
        await streams.subscribe(channels)
        redis_client.client_kill_filter(_type="pubsub")
        await eventually(lambda: all(ear.suspicions(channel) for channel in (channels[0], channels[-1])))
        assert all(ear.suspicions(channel) == 1 for channel in channels)

    async def test_under_traffic_nothing_goes_by_unnoticed(
        self, redis_client: "redis.Redis", brokers: ServerBrokers, streams: RedisStreams
    ) -> None:
        ear, publisher = Ear(), await brokers.streams()
        streams.follow(ear)
        await streams.subscribe(["a", "b"])
        sequence, stopped = 0, False

        async def publish() -> None:
            nonlocal sequence
            while not stopped:
                sequence += 1
                await publisher.append([batch(sequence, {"a": [b"x"], "b": [b"x", b"y"]})])

        async with running(publish()) as publishing:
            for kills in range(1, 9):
                goal = sequence + 20
                await eventually(lambda goal=goal: sequence >= goal)
                redis_client.client_kill_filter(_type="pubsub")
                await eventually(lambda kills=kills: ear.suspicions("a") >= kills)
            stopped = True
            await publishing
        await Sentinel(streams, ear).passed()
        for channel, position in zip("ab", await streams.positions(["a", "b"]), strict=True):
            assert ear.unnoticed_gaps(channel, 0, position.offset) == []
            last_suspicion = max(index for index, event in enumerate(ear.events) if isinstance(event, frozenset))
            after = [event.offset for event in ear.groups(channel) if ear.events.index(event) > last_suspicion]
            step = 2 if channel == "b" else 1
            assert after == list(range(after[0], after[-1] + 1, step))

    async def test_a_subscribe_under_way_fails_or_counts(
        self, redis_client: "redis.Redis", brokers: ServerBrokers, streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        for number in range(20):
            names = [f"channel-{number}-{index}" for index in range(600)]
            async with running(streams.subscribe(names)) as subscribing:
                await asyncio.wait([subscribing], timeout=0.001)
                redis_client.client_kill_filter(_type="pubsub")
                await asyncio.wait([subscribing])
                counts = subscribing.exception() is None
                if not counts:
                    assert isinstance(subscribing.exception(), Unavailable)
            await eventually(lambda: streams.subscriptions.connected)
            await insist(lambda number=number: streams.subscribe([f"mark-{number}"]))
            await streams.append([batch(number + 1, {names[0]: [b"x"], names[-1]: [b"x"], f"mark-{number}": [b"x"]})])
            await eventually(lambda number=number: ear.heard(f"mark-{number}"))
            for name in (names[0], names[-1]):
                if counts:
                    assert ear.heard(name) or ear.suspicions(name)
                else:
                    assert not ear.heard(name)
            await streams.unsubscribe(names)


class TestFrozen:
    async def test_calls_raise_in_time_and_pub_sub_notices_by_itself(
        self, brokers: ServerBrokers, redis_server: Redis, streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a", "b"])
        await streams.append([batch(1, {"a": [b"1"]})])
        redis_server.pause()
        await raises_unavailable(lambda: streams.subscribe(["c", "d"]), 2 * TIMEOUT)
        await raises_unavailable(lambda: streams.append([batch(2, {"a": [b"2"], "b": [b"2"]})]), 3 * TIMEOUT)
        await raises_unavailable(lambda: streams.append([batch(2, {"a": [b"2"], "b": [b"2"]})]), 3 * TIMEOUT)
        await raises_unavailable(lambda: everything(streams, "a"), 3 * TIMEOUT)
        await eventually(lambda: not streams.subscriptions.connected)
        await streams.unsubscribe(["b"])
        redis_server.resume()
        await eventually(lambda: ear.suspicions("a"))
        await insist(lambda: streams.append([batch(2, {"a": [b"2"], "b": [b"2"]})]))
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2")]
        assert placed((await everything(streams, "b")).publications) == [(1, b"2")]
        await hears_again(streams, ear, "a", 1)
        await streams.append([batch(3, {"b": [b"3"], "c": [b"3"], "d": [b"3"]})])
        await Sentinel(streams, ear).passed()
        assert (ear.heard("b"), ear.heard("c"), ear.heard("d")) == ([], [], [])
        assert brokers.reconnections == ["redis"]

    async def test_more_calls_than_connections_all_raise_in_time(
        self, redis_server: Redis, streams: RedisStreams
    ) -> None:
        await streams.positions(["a"])
        redis_server.pause()
        began = time.monotonic()
        results = await asyncio.gather(*(streams.positions(["a"]) for _ in range(40)), return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        assert time.monotonic() - began < 4 * TIMEOUT
        redis_server.resume()
        await insist(lambda: streams.positions(["a"]))

    async def test_a_short_freeze_loses_nothing(self, redis_server: Redis, streams: RedisStreams) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a"])
        redis_server.pause()
        async with running(streams.append([batch(1, {"a": [b"1"]})])) as appending:
            await asyncio.wait([appending], timeout=0.1)
            assert not appending.done()
            redis_server.resume()
            await appending
        await eventually(lambda: ear.heard("a") == [(1, b"1")])
        assert ear.suspicions("a") == 0


class TestRefusing:
    """What Redis answers with an error."""

    async def test_a_key_of_the_wrong_type_refuses_that_batch_only(
        self, brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        redis_client.set(f"{topic(brokers, 'wrong')}:meta", "not a hash")
        before, wrong, after = await streams.append(
            [batch(1, {"a": [b"1"]}), batch(2, {"wrong": [b"x"]}), batch(3, {"a": [b"2"]})]
        )
        assert isinstance(wrong, Refused)
        assert not isinstance(before, Refused)
        assert not isinstance(after, Refused)
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2")]
        assert redis_client.get(f"{topic(brokers, 'wrong')}:meta") == b"not a hash"

    async def test_a_stream_of_the_wrong_type_stores_nothing(
        self, brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        await streams.positions(["wrong"])
        redis_client.set(f"{topic(brokers, 'wrong')}:stream", "not a stream")
        (outcome,) = await streams.append([batch(1, {"wrong": [b"x"]})])
        assert isinstance(outcome, Refused)
        (position,) = await streams.positions(["wrong"])
        assert position.offset == 0
        redis_client.delete(f"{topic(brokers, 'wrong')}:stream")
        await streams.append([batch(1, {"wrong": [b"x"]})])  # nothing was stored: it is no repetition
        assert placed((await everything(streams, "wrong")).publications) == [(1, b"x")]

    @pytest.mark.parametrize(
        ("begin", "end"),
        [
            (["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"]),
            (["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]),
            (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"]),
            (
                ["REPLICAOF 127.0.0.1 1", "CONFIG SET replica-serve-stale-data no"],
                ["CONFIG SET replica-serve-stale-data yes", "REPLICAOF NO ONE"],
            ),
        ],
        ids=["OOM", "READONLY", "NOREPLICAS", "MASTERDOWN"],
    )
    async def test_not_now_is_unavailable(
        self, redis_client: "redis.Redis", streams: RedisStreams, begin: list[str], end: list[str]
    ) -> None:
        await streams.append([batch(1, {"a": [b"1"]})])
        try:
            for command in begin:
                redis_client.execute_command(command)  # type: ignore[no-untyped-call]
            with pytest.raises(Unavailable):
                await streams.append([batch(2, {"a": [b"2"]}), batch(1, {"b": [b"1"]})])
        finally:
            for command in end:
                redis_client.execute_command(command)  # type: ignore[no-untyped-call]
        await insist(lambda: streams.append([batch(2, {"a": [b"2"]}), batch(1, {"b": [b"1"]})]))
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2")]
        assert placed((await everything(streams, "b")).publications) == [(1, b"1")]

    async def test_busy_with_a_script_is_unavailable(self, redis_client: "redis.Redis", streams: RedisStreams) -> None:
        await streams.append([batch(1, {"a": [b"1"]})])
        redis_client.config_set("busy-reply-threshold", 10)
        busy = redis.Redis(connection_pool=redis_client.connection_pool)
        try:
            async with running(asyncio.to_thread(spin, busy)) as spinning:
                with pytest.raises(Unavailable):
                    await append_for_ever(streams, batch(2, {"a": [b"2"]}))
                redis_client.script_kill()
                await asyncio.wait([spinning])
        finally:
            redis_client.config_set("busy-reply-threshold", 5000)
        await insist(lambda: streams.append([batch(2, {"a": [b"2"]})]))
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2")]

    async def test_scripts_forgotten_by_the_server_are_loaded_again(
        self, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        for sequence in range(1, 21):
            await streams.append([batch(sequence, {"a": [b"%d" % sequence], "b": [b"x"]})])
            redis_client.script_flush()
            if sequence % 2:
                assert (await everything(streams, "a")).end.offset == sequence
        assert placed((await everything(streams, "a")).publications) == list(enumerate(numbered(20), 1))

    async def test_scripts_forgotten_at_any_moment_refuse_nothing(
        self, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        stopped = False

        def flush() -> None:
            while not stopped:
                redis_client.script_flush()

        async with running(asyncio.to_thread(flush)):
            try:
                for sequence in range(1, 41):
                    (outcome,) = await insist(
                        lambda sequence=sequence: streams.append([batch(sequence, {"a": [b"%d" % sequence]})])
                    )
                    assert not isinstance(outcome, Refused)
            finally:
                stopped = True
        assert placed((await everything(streams, "a")).publications) == list(enumerate(numbered(40), 1))


class TestDisturbedByOthers:
    async def test_what_is_no_group_of_ours_is_not_heard(
        self, brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a"])
        for message in (
            b"",
            b"\n",
            b"not a group",
            b"e 1 1 1.0\n",
            b"e 1 2 1.0\n\xc0",
            b"\xff 1 0 1.0\n",
            b"e x 1 1\n",
        ):
            redis_client.publish(topic(brokers, "a"), message)
        await hears_again(streams, ear, "a", 1)
        assert ear.heard("a") == [(1, b"again")]
        assert streams.subscriptions.connected

    async def test_an_entry_that_is_no_publication_is_a_hole(
        self, brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        await streams.append([batch(1, {"a": [b"1"]})])
        redis_client.xadd(f"{topic(brokers, 'a')}:stream", {"p": b"\xc1"}, id="2-0")
        redis_client.hset(f"{topic(brokers, 'a')}:meta", "offset", "2")
        await streams.append([batch(2, {"a": [b"3"]})])
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (3, b"3")]

    async def test_what_redis_sends_before_it_reads_the_unsubscribe_is_not_heard(
        self, brokers: ServerBrokers, redis_server: Redis, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        ear = Ear()
        streams.follow(ear)
        await streams.subscribe(["a"])
        group = encode_committed("epoch", 1, 1.0, [encode_publication(Publication(b"x"))])
        with closing(socket.create_connection(("127.0.0.1", redis_server.port))) as connection:
            redis_server.pause()
            await asyncio.to_thread(connection.sendall, publish_command(topic(brokers, "a"), group))
            await streams.unsubscribe(["a"])
            redis_server.resume()
            # Which of the two Redis reads first is its own affair: mostly the older one, and then it has a subscriber.
            assert await asyncio.to_thread(connection.recv, 4) in (b":0\r\n", b":1\r\n")
        await Sentinel(streams, ear).passed()
        assert ear.groups("a") == []

    async def test_a_stream_without_its_position_begins_anew(
        self, brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
    ) -> None:
        await streams.append([batch(1, {"a": numbered(3), "b": numbered(3)})])
        before = await streams.positions(["a", "b"])
        assert redis_client.delete(f"{topic(brokers, 'a')}:meta", f"{topic(brokers, 'b')}:meta") == 2
        await streams.append([batch(2, {"a": [b"new"]})])
        assert placed((await everything(streams, "a")).publications) == [(1, b"new")]
        assert (await everything(streams, "b")).publications == []
        for old, new in zip(before, await streams.positions(["a", "b"]), strict=True):
            assert new.epoch != old.epoch


async def test_publishers_silent_for_an_hour_make_room_for_new_ones(
    brokers: ServerBrokers, redis_client: "redis.Redis", streams: RedisStreams
) -> None:
    meta = f"{topic(brokers, 'a')}:meta"
    await streams.append([batch(1, {"a": [b"x"]}, publisher=f"recent-{number}") for number in range(20)])
    now = time.time()
    redis_client.hset(meta, mapping={f"p:silent-{number}": f"1 {now - 3601:.6f}" for number in range(20)})
    await streams.append([batch(1, {"a": [b"x"]}, publisher="new")])
    names: Any = redis_client.hkeys(meta)
    assert sum(name.startswith(b"p:silent") for name in names) == 0
    await streams.append([batch(1, {"a": [b"x"]}, publisher=f"recent-{number}") for number in range(20)])
    (position,) = await streams.positions(["a"])
    assert position.offset == 21


async def append_for_ever(streams: Streams, one: Batch) -> None:
    """Append a batch over and over, until that raises."""
    while True:
        await streams.append([one])


def publish_command(topic: str, message: bytes) -> bytes:
    """PUBLISH as Redis reads it, for a connection that does not wait for the answer (RESP2)."""
    words = [b"PUBLISH", topic.encode(), message]
    return b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def spin(client: "redis.Redis") -> None:
    """Keep Redis busy until SCRIPT KILL."""
    with pytest.raises(redis.ResponseError):
        client.eval("while true do end", 0)
