"""Streams, but for the followers: append, read, positions."""

import asyncio
import secrets

import pytest

from broker.envelope import Batch, ClientInfo, Group, Position, Publication, Retention, encode_publication
from broker.ports import Outcome, Streams

from .brokers import Brokers
from .support import KEPT, NOT_KEPT, batch, eventually, everything, numbered, placed, running, turns

NAMES = [
    "a",
    "}first",
    "{}",
    "{a}b",
    "}{",
    "ns:name",
    ":",
    "with space",
    "#private",
    "user#42,43",
    "*?[a]",
    "naïve-東京-🚀",
    "\x00\n\r",
    "meta}:meta",
    "a" * 255,
    "é" * 127 + "}",
]


async def end_of(streams: Streams, channel: str) -> Position:
    """The end of one channel's stream."""
    (position,) = await streams.positions([channel])
    return position


def offsets(outcome: Outcome) -> list[int]:
    """The offsets of a batch's positions."""
    assert isinstance(outcome, list)
    return [position.offset for position in outcome]


class TestOffsetsAndEpochs:
    async def test_offsets_are_1_2_3(self, streams: Streams) -> None:
        (outcome,) = await streams.append([batch(1, {"a": [b"one"]})])
        assert offsets(outcome) == [1]
        (outcome,) = await streams.append([batch(2, {"a": [b"two", b"three"]})])
        assert offsets(outcome) == [3]
        page = await everything(streams, "a")
        assert placed(page.publications) == [(1, b"one"), (2, b"two"), (3, b"three")]
        assert page.end.offset == 3

    async def test_append_answers_for_every_group_of_every_batch(self, streams: Streams) -> None:
        outcomes = await streams.append(
            [batch(1, {"a": [b"1"], "b": [b"1", b"2"]}), batch(2, {"b": [b"3"], "c": [b"1"], "a": [b"2"]})]
        )
        assert [offsets(outcome) for outcome in outcomes] == [[1, 2], [3, 1, 2]]
        end_a, end_b, end_c = await streams.positions(["a", "b", "c"])
        assert outcomes[1] == [end_b, end_c, end_a]

    async def test_the_epoch_stays(self, streams: Streams) -> None:
        epochs = set()
        for sequence in range(1, 6):
            (outcome,) = await streams.append([batch(sequence, {"a": [b"x"]})])
            assert isinstance(outcome, list)
            epochs |= {outcome[0].epoch, (await everything(streams, "a")).end.epoch, (await end_of(streams, "a")).epoch}
        assert len(epochs) == 1
        assert epochs != {""}

    async def test_each_channel_has_an_epoch_of_its_own(self, streams: Streams) -> None:
        channels = [f"channel-{number}" for number in range(20)]
        assert len({position.epoch for position in await streams.positions(channels)}) == 20

    @pytest.mark.parametrize("first", ["read", "positions", "append"])
    async def test_a_channel_never_seen_begins_its_epoch_and_keeps_it(self, streams: Streams, first: str) -> None:
        if first == "read":
            page = await everything(streams, "a")
            assert page.publications == []
            begun = page.end
        elif first == "positions":
            begun = await end_of(streams, "a")
        else:
            (outcome,) = await streams.append([batch(1, {"a": []})])
            assert isinstance(outcome, list)
            begun = outcome[0]
        assert begun.offset == 0
        assert await end_of(streams, "a") == begun
        assert (await everything(streams, "a")).end == begun
        await streams.append([batch(2, {"a": [b"one"]})])
        assert await end_of(streams, "a") == Position(begun.epoch, 1)

    async def test_a_stream_that_was_lost_begins_a_new_epoch(self, brokers: Brokers, streams: Streams) -> None:
        await streams.append([batch(1, {"a": numbered(3), "b": numbered(3)})])
        before_a, before_b = await streams.positions(["a", "b"])
        await brokers.lose("a")
        await streams.append([batch(2, {"a": [b"new"]})])
        after_a, after_b = await streams.positions(["a", "b"])
        assert after_a.offset == 1
        assert after_a.epoch != before_a.epoch
        assert after_b == before_b
        assert placed((await everything(streams, "a")).publications) == [(1, b"new")]

    async def test_a_stream_nobody_used_for_long_begins_a_new_epoch(self, brokers: Brokers) -> None:
        streams = await brokers.streams(position_ttl=0.3)
        await streams.append([batch(1, {"a": numbered(3)})])
        before = await end_of(streams, "a")

        async def begun_again() -> bool:
            return (await everything(streams, "a")).end.epoch != before.epoch

        await eventually(begun_again, pause=0.4)  # each look keeps it alive
        assert (await everything(streams, "a")).publications == []
        await streams.append([batch(2, {"a": [b"new"]})])
        assert placed((await everything(streams, "a")).publications) == [(1, b"new")]

    async def test_channels_do_not_disturb_each_other(self, streams: Streams) -> None:
        for sequence in range(1, 11):
            await streams.append([batch(sequence, {"a": [b"a%d" % sequence], "b": [b"b%d" % sequence] * 2})])
        a, b = await everything(streams, "a"), await everything(streams, "b")
        assert [publication.data for publication in a.publications] == numbered(10, "a")
        assert [publication.data for publication in b.publications[::2]] == numbered(10, "b")
        assert (a.end.offset, b.end.offset) == (10, 20)

    async def test_no_name_collides_with_another(self, streams: Streams) -> None:
        for sequence, name in enumerate(NAMES, 1):
            await streams.append([batch(sequence, {name: [name.encode(), b"end"]})])
        for name, position in zip(NAMES, await streams.positions(NAMES), strict=True):
            page = await everything(streams, name)
            assert placed(page.publications) == [(1, name.encode()), (2, b"end")]
            assert position == page.end

    async def test_nothing_asked_is_nothing_answered(self, streams: Streams) -> None:
        assert await streams.append([]) == []
        assert await streams.append([Batch("publisher", 1, [])]) == [[]]
        assert await streams.positions([]) == []
        await streams.subscribe([])
        await streams.unsubscribe([])


class TestRepetitions:
    async def test_a_repeated_batch_changes_nothing_and_yields_the_present_positions(self, streams: Streams) -> None:
        first, second = batch(1, {"a": numbered(2)}), batch(2, {"a": [b"3"]})
        assert [offsets(outcome) for outcome in await streams.append([first])] == [[2]]
        assert [offsets(outcome) for outcome in await streams.append([first])] == [[2]]
        await streams.append([second])
        outcomes = await streams.append([first, second, second])
        assert outcomes == [[await end_of(streams, "a")]] * 3
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2"), (3, b"3")]

    async def test_a_batch_repeated_in_the_same_call_commits_once(self, streams: Streams) -> None:
        repeated = batch(1, {"a": [b"1"], "b": [b"1", b"2"]})
        outcomes = await streams.append([repeated, repeated, batch(2, {"a": [b"2"]}), repeated])
        assert [offsets(outcome) for outcome in outcomes] == [[1, 2], [1, 2], [2], [2, 2]]

    async def test_a_batch_of_many_channels_commits_once(self, streams: Streams) -> None:
        channels = [f"channel-{number}" for number in range(500)]
        many = batch(1, {channel: [channel.encode(), b"end"] for channel in channels})
        first, again = await streams.append([many]), await streams.append([many])
        assert first == again == [await streams.positions(channels)]
        assert {position.offset for position in await streams.positions(channels)} == {2}

    async def test_a_batch_half_of_which_is_new_to_a_channel_commits_that_half(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": [b"1"]})])
        await streams.append([batch(1, {"a": [b"1"], "b": [b"1"]})])
        assert [position.offset for position in await streams.positions(["a", "b"])] == [1, 1]

    async def test_the_same_sequence_of_another_publisher_is_another_batch(self, streams: Streams) -> None:
        for publisher in ("p", "q", "p 1", "p:1", "", "epoch", "offset"):
            one = batch(1, {"a": [publisher.encode()]}, publisher=publisher)
            await streams.append([one])
            await streams.append([one])
        assert (await end_of(streams, "a")).offset == 7

    async def test_equal_data_in_another_batch_is_not_a_repetition(self, streams: Streams) -> None:
        for sequence in range(1, 4):
            await streams.append([batch(sequence, {"a": [b"same", b"same"]})])
        assert (await end_of(streams, "a")).offset == 6

    async def test_sequences_may_leave_out_numbers_and_grow_large(self, streams: Streams) -> None:
        for sequence in (1, 7, 9, 10, 100, 2**31, 2**40, 2**53 - 1):
            for _ in range(2):
                await streams.append([batch(sequence, {"a": [b"%d" % sequence]})])
        assert (await end_of(streams, "a")).offset == 8

    async def test_many_publishers_are_told_apart(self, streams: Streams) -> None:
        batches = [batch(sequence, {"a": [b"x"]}, publisher=f"p{p}") for sequence in (1, 2) for p in range(100)]
        for _ in range(2):
            await streams.append(batches)
        assert (await end_of(streams, "a")).offset == 200

    async def test_an_older_batch_after_a_newer_one_is_a_repetition(self, streams: Streams) -> None:
        batches = [batch(sequence, {"a": [b"%d" % sequence]}) for sequence in range(1, 11)]
        await streams.append(batches)
        for late in reversed(batches):
            assert [offsets(outcome) for outcome in await streams.append([late])] == [[10]]

    async def test_a_repetition_is_one_also_when_nothing_is_kept(self, streams: Streams) -> None:
        for _ in range(3):
            await streams.append([batch(1, {"a": [b"x"]}, retention=NOT_KEPT)])
        assert (await end_of(streams, "a")).offset == 1

    async def test_two_committers_of_the_same_batches_commit_each_once(self, brokers: Brokers) -> None:
        committers = [await brokers.streams(), await brokers.streams()]
        batches = [batch(number, {c: [f"{c}{number}".encode()] for c in "abc"}) for number in range(1, 41)]

        async def commit(streams: Streams, size: int) -> None:
            for start in range(0, len(batches), size):
                await streams.append(batches[start : start + size])

        await asyncio.gather(commit(committers[0], 1), commit(committers[1], 3))
        await committers[1].append(batches[4:5])  # a late one
        for channel in "abc":
            page = await everything(committers[0], channel)
            assert placed(page.publications) == list(enumerate(numbered(40, channel), 1))
            assert page.end.offset == 40

    async def test_concurrent_appends_are_atomic_and_totally_ordered(self, brokers: Brokers) -> None:
        both = [await brokers.streams(), await brokers.streams()]

        async def publish(name: str, streams: Streams) -> None:
            for sequence in range(1, 21):
                await streams.append([batch(sequence, {"a": numbered(5, f"{name}{sequence}-")}, publisher=name)])

        await asyncio.gather(*(publish(name, both[index % 2]) for index, name in enumerate("pqrstu")))
        pages = [await everything(streams, "a") for streams in both]
        assert pages[0] == pages[1]
        data = [publication.data for publication in pages[0].publications]
        groups = [data[start : start + 5] for start in range(0, len(data), 5)]
        assert sorted(groups) == sorted(numbered(5, f"{name}{s}-") for name in "pqrstu" for s in range(1, 21))
        for name in "pqrstu":
            own = [group for group in groups if group[0].startswith(name.encode())]
            assert own == [numbered(5, f"{name}{sequence}-") for sequence in range(1, 21)]

    async def test_a_cancelled_append_commits_all_of_a_group_or_nothing(self, streams: Streams) -> None:
        for sequence in range(1, 41):
            group = batch(sequence, {"a": numbered(3)})
            async with running(streams.append([group])):
                await turns(sequence % 8)
            await streams.append([group])
            assert (await end_of(streams, "a")).offset == 3 * sequence

    async def test_a_cancelled_call_disturbs_no_later_one(self, streams: Streams) -> None:
        channels = {f"channel-{number}": numbered(number) for number in range(1, 21)}
        await streams.append([batch(1, channels)])
        for count, channel in enumerate(channels, 1):
            for calls in range(8):
                async with running(everything(streams, channel)), running(streams.positions([channel])):
                    await turns(calls)
            assert placed((await everything(streams, channel)).publications) == list(enumerate(numbered(count), 1))

    async def test_a_caller_that_is_cancelled_ends(self, streams: Streams) -> None:
        async def call_forever(number: int) -> None:
            sequence = 0
            while True:
                sequence += 1
                await streams.append([batch(sequence, {"a": [b"x"]}, publisher=str(number))])
                await streams.positions(["a"])
                await streams.read("a", None, 3)
                await streams.subscribe(["a"])
                await streams.unsubscribe(["a"])
                await turns(1)

        for number in range(60):
            async with running(call_forever(number)):
                await turns(number)


class TestRetention:
    @pytest.mark.parametrize("size", [1, 3, 100, 101])
    async def test_size_is_exact(self, streams: Streams, size: int) -> None:
        for sequence in range(1, 11):
            await streams.append([batch(sequence, {"a": [b"x"] * 30}, retention=Retention(size, 600))])
        page = await everything(streams, "a")
        assert [publication.offset for publication in page.publications] == list(range(300 - size + 1, 301))
        assert page.end.offset == 300

    async def test_a_batch_larger_than_the_size_keeps_its_end(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": [b"before"]}, retention=Retention(5, 600))])
        await streams.append([batch(2, {"a": numbered(1000)}, retention=Retention(5, 600))])
        page = await everything(streams, "a")
        assert placed(page.publications) == [(n + 1, b"%d" % n) for n in range(996, 1001)]
        assert page.end.offset == 1001

    async def test_the_size_of_the_last_append_counts(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": numbered(10)}, retention=Retention(10, 600))])
        await streams.append([batch(2, {"a": [b"x"]}, retention=Retention(3, 600))])
        assert [publication.offset for publication in (await everything(streams, "a")).publications] == [9, 10, 11]
        await streams.append([batch(3, {"a": [b"x"] * 3}, retention=Retention(5, 600))])
        offsets_kept = [publication.offset for publication in (await everything(streams, "a")).publications]
        assert offsets_kept == [10, 11, 12, 13, 14]

    @pytest.mark.parametrize("retention", [Retention(0, 0), Retention(0, 600), Retention(10, 0)])
    async def test_zero_keeps_nothing_but_counts(self, streams: Streams, retention: Retention) -> None:
        for sequence in range(1, 4):
            (outcome,) = await streams.append([batch(sequence, {"a": numbered(2)}, retention=retention)])
            assert offsets(outcome) == [2 * sequence]
        page = await everything(streams, "a")
        assert page.publications == []
        assert page.end.offset == 6

    async def test_what_was_kept_stays_when_something_is_not_kept(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": numbered(2)})])
        await streams.append([batch(2, {"a": [b"not kept"]}, retention=NOT_KEPT)])
        await streams.append([batch(3, {"a": [b"4"]})])
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2"), (4, b"4")]

    async def test_ttl_forgets_the_publications_but_not_the_position(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": numbered(3)}, retention=Retention(10, 0.2))])
        begun = await end_of(streams, "a")

        async def expired() -> bool:
            return not (await everything(streams, "a")).publications

        await eventually(expired)
        assert (await everything(streams, "a")).end == begun
        await streams.append([batch(1, {"a": numbered(3)})])  # still known as a repetition
        (outcome,) = await streams.append([batch(2, {"a": [b"4"]})])
        assert outcome == [Position(begun.epoch, 4)]
        assert placed((await everything(streams, "a")).publications) == [(4, b"4")]

    async def test_ttl_counts_from_the_last_publication(self, streams: Streams) -> None:
        short, long = Retention(10, 0.2), Retention(10, 600)
        await streams.append([batch(1, {"a": [b"1"]}, retention=short)])
        await streams.append([batch(2, {"a": [b"2"]}, retention=long), batch(1, {"witness": [b"x"]}, retention=short)])

        async def witness_expired() -> bool:
            return not (await everything(streams, "witness")).publications

        await eventually(witness_expired)
        assert placed((await everything(streams, "a")).publications) == [(1, b"1"), (2, b"2")]

    async def test_reading_does_not_prolong_what_is_kept(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": [b"1"]}, retention=Retention(10, 0.3))])

        async def expired() -> bool:
            await streams.positions(["a"])
            return not (await everything(streams, "a")).publications

        await eventually(expired, pause=0.05)


class TestRead:
    @pytest.fixture
    async def five(self, streams: Streams) -> Streams:
        """Offsets 4 to 8 of channel `a` are kept."""
        await streams.append([batch(1, {"a": numbered(8)}, retention=Retention(5, 600))])
        return streams

    @pytest.mark.parametrize(
        ("since", "limit", "expected"),
        [
            (None, 100, [4, 5, 6, 7, 8]),
            (None, 2, [4, 5]),
            (None, 0, []),
            (0, 100, [4, 5, 6, 7, 8]),
            (3, 100, [4, 5, 6, 7, 8]),
            (4, 100, [5, 6, 7, 8]),
            (4, 1, [5]),
            (4, 4, [5, 6, 7, 8]),
            (7, 100, [8]),
            (8, 100, []),
            (9, 100, []),
            (1_000_000, 100, []),
            (2**53, 100, []),
            (2**64 - 1, 100, []),
            (2**70, 100, []),
        ],
    )
    async def test_forwards(self, five: Streams, since: int | None, limit: int, expected: list[int]) -> None:
        page = await five.read("a", since, limit)
        assert placed(page.publications) == [(offset, b"%d" % offset) for offset in expected]
        assert page.end == await end_of(five, "a")
        assert page.end.offset == 8

    @pytest.mark.parametrize(
        ("since", "limit", "expected"),
        [
            (None, 100, [8, 7, 6, 5, 4]),
            (None, 2, [8, 7]),
            (None, 0, []),
            (0, 100, []),
            (1, 100, []),
            (2, 100, []),
            (4, 100, []),
            (5, 100, [4]),
            (8, 100, [7, 6, 5, 4]),
            (8, 2, [7, 6]),
            (9, 100, [8, 7, 6, 5, 4]),
            (1_000_000, 2, [8, 7]),
            (2**64 - 1, 1, [8]),
            (2**64, 1, [8]),
            (2**70, 1, [8]),
        ],
    )
    async def test_backwards(self, five: Streams, since: int | None, limit: int, expected: list[int]) -> None:
        page = await five.read("a", since, limit, reverse=True)
        assert placed(page.publications) == [(offset, b"%d" % offset) for offset in expected]
        assert page.end.offset == 8

    @pytest.mark.parametrize("reverse", [False, True])
    async def test_an_empty_stream(self, streams: Streams, reverse: bool) -> None:
        for since in (None, 0, 1, 5):
            page = await streams.read("a", since, 100, reverse=reverse)
            assert page.publications == []
            assert page.end.offset == 0

    async def test_pages_join_to_the_whole(self, streams: Streams) -> None:
        await streams.append([batch(1, {"a": numbered(100)})])
        read: list[tuple[int, bytes]] = []
        while page := (await streams.read("a", read[-1][0] if read else None, 7)).publications:
            read += placed(page)
        assert read == list(enumerate(numbered(100), 1))

    async def test_positions_come_in_the_order_asked_also_twice(self, streams: Streams) -> None:
        channels = [f"channel-{number}" for number in range(1, 301)]
        await streams.append([batch(1, {name: [b"x"] * number for number, name in enumerate(channels, 1)})])
        asked = [*reversed(channels), "never seen", channels[0]]
        positions = await streams.positions(asked)
        assert [position.offset for position in positions] == [*range(300, 0, -1), 0, 1]
        assert positions[-1] == positions[-3]

    async def test_another_node_reads_the_same(self, brokers: Brokers, streams: Streams) -> None:
        other = await brokers.streams()
        await streams.append([batch(1, {"a": numbered(3)})])
        assert await everything(other, "a") == await everything(streams, "a")
        await other.append([batch(1, {"a": [b"4"]}, publisher="other")])
        assert await end_of(streams, "a") == await end_of(other, "a")
        assert (await end_of(streams, "a")).offset == 4


class TestPublications:
    @pytest.mark.parametrize(
        "data",
        [b"", b"\x00", b"\n", b"1 2 3 4.0\n", bytes(range(256)), b"\xdd\x00\x00\x00\x01", secrets.token_bytes(1 << 20)],
        ids=["empty", "NUL", "newline", "header", "every byte", "msgpack", "1 MiB"],
    )
    async def test_any_data_is_read_as_it_was(self, streams: Streams, data: bytes) -> None:
        await streams.append([batch(1, {"a": [data, b"between", data]})])
        publications = (await everything(streams, "a")).publications
        assert placed(publications) == [(1, data), (2, b"between"), (3, data)]

    async def test_all_that_belongs_to_a_publication_is_read_as_it_was(self, streams: Streams) -> None:
        publication = Publication(
            b'{"a": "\xc3\xa9"}', ClientInfo("user\n\x00", "client", b'{"x": 1}'), {"tag\n": "\x00", "": "é"}, 2**42
        )
        await streams.append([Batch("p", 1, [Group("a", KEPT, [encode_publication(publication)])])])
        (read,) = (await everything(streams, "a")).publications
        publication.offset = 1
        assert read == publication

    async def test_a_group_of_many_publications(self, streams: Streams) -> None:
        many = numbered(10_000)
        await streams.append([batch(1, {"a": many})])
        page = await everything(streams, "a")
        assert [publication.data for publication in page.publications] == many
