"""The outbox joins what is pending, writes it once, and gives up a client that does not read."""

import pytest
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.streams import StreamReader

from gateway.outbox import Flusher, Frame, Outbox
from gateway.protocol.codes import INVALID_TOKEN, SHUTDOWN, SLOW, Disconnect
from tests.unit.doubles import RecordingWriter
from tests.unit.waiting import turns

LIMIT = 1000


@pytest.fixture
def writer() -> RecordingWriter:
    return RecordingWriter()


@pytest.fixture
def counts() -> list[float]:
    """How many messages each flush wrote."""
    return []


@pytest.fixture
def outbox(writer: RecordingWriter, counts: list[float]) -> Outbox:
    return Outbox(writer, Flusher(counts.append), LIMIT)


# Frames.

SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 200_000]


@pytest.mark.parametrize("size", SIZES)
def test_encoded_frame_is_what_a_client_parses(size: int) -> None:
    payload = b"x" * size
    reader = StreamReader()
    reader.feed_data(Frame(payload).encoded)
    parser = WireFrame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as parsed:
        next(parser)
    wire = parsed.value.value
    assert (wire.opcode, wire.fin, wire.data) == (Opcode.TEXT, True, payload)
    assert (wire.rsv1, wire.rsv2, wire.rsv3) == (False, False, False)


HEADS = [
    (0, b"\x81\x00"),
    (125, b"\x81\x7d"),
    (126, b"\x81\x7e\x00\x7e"),
    (65_535, b"\x81\x7e\xff\xff"),
    (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
]


@pytest.mark.parametrize(("size", "head"), HEADS)
def test_length_is_written_in_the_fewest_bytes(size: int, head: bytes) -> None:
    assert Frame(b"x" * size).encoded[: len(head)] == head
    assert len(Frame(b"x" * size).encoded) == len(head) + size


def test_frame_is_encoded_once_however_many_write_it() -> None:
    frame = Frame(b"hello")
    assert frame.encoded is frame.encoded


# Joining.


async def test_what_one_turn_puts_is_written_as_one_frame_at_its_end(outbox: Outbox, writer: RecordingWriter) -> None:
    outbox.send(b"1")
    outbox.put(Frame(b"2\n3", messages=2))
    outbox.send(b"4")
    assert writer.frames == []
    await turns(1)
    assert writer.payloads == [b"1\n2\n3\n4"]


async def test_what_a_later_turn_puts_is_another_frame(outbox: Outbox, writer: RecordingWriter) -> None:
    for payload in (b"1", b"2"):
        outbox.send(payload)
        await turns(1)
    assert writer.payloads == [b"1", b"2"]


async def test_shared_frame_alone_is_written_as_it_is_to_everybody(counts: list[float]) -> None:
    flusher, writers = Flusher(counts.append), [RecordingWriter() for _ in range(3)]
    frame = Frame(b"shared", messages=2)
    for writer in writers:
        Outbox(writer, flusher, LIMIT).put(frame)
    await turns(1)
    assert all(writer.frames == [frame] and writer.frames[0] is frame for writer in writers)
    assert sum(counts) == 6


async def test_messages_are_counted_as_they_are_written(outbox: Outbox, counts: list[float]) -> None:
    outbox.send(b"1")
    outbox.put(Frame(b"2\n3", messages=2))
    assert sum(counts) == 0
    await turns(1)
    assert sum(counts) == 3


async def test_backlog_is_what_is_pending_and_what_the_kernel_has_not_taken(
    outbox: Outbox, writer: RecordingWriter
) -> None:
    writer.unread = 100
    outbox.send(b"x" * 20)
    assert outbox.backlog == 120
    await turns(1)
    assert outbox.backlog == 120  # this client takes nothing


# Slow clients.


async def test_client_that_does_not_read_is_closed_as_slow_once(outbox: Outbox, writer: RecordingWriter) -> None:
    ends: list[Disconnect] = []
    outbox.on_close = ends.append
    writer.unread = LIMIT - 10
    outbox.send(b"x" * 10)
    assert writer.disconnects == []
    outbox.send(b"x")
    outbox.send(b"x" * LIMIT)
    assert writer.disconnects == [SLOW]
    assert ends == [SLOW]
    assert outbox.closed is SLOW
    await turns()
    assert len(writer.frames) == 1, "more for a client that does not read"


async def test_much_in_one_turn_is_not_the_fault_of_a_client_that_reads(
    outbox: Outbox, writer: RecordingWriter
) -> None:
    for _ in range(LIMIT // 100 * 3):
        outbox.send(b"x" * 100)
        assert outbox.size <= LIMIT
    await turns()
    assert writer.disconnects == []
    assert sum(payload.count(b"x") for payload in writer.payloads) == LIMIT // 100 * 300


async def test_client_that_reads_is_never_slow(outbox: Outbox, writer: RecordingWriter) -> None:
    for _ in range(50):
        outbox.send(b"x" * LIMIT)
        await turns(1)
    assert writer.disconnects == []
    assert len(writer.frames) == 50


# Closing.


async def test_close_writes_what_is_pending_first(outbox: Outbox, writer: RecordingWriter, counts: list[float]) -> None:
    outbox.send(b"1")
    outbox.send(b"2")
    outbox.close(SHUTDOWN)
    assert writer.payloads == [b"1\n2"]
    assert writer.disconnects == [SHUTDOWN]
    await turns()
    assert writer.payloads == [b"1\n2"]


async def test_messages_written_by_the_close_are_counted_too(outbox: Outbox, counts: list[float]) -> None:
    outbox.send(b"1")
    outbox.send(b"2")
    outbox.close(SHUTDOWN)
    await turns()
    assert sum(counts) == 2


async def test_first_close_counts(outbox: Outbox, writer: RecordingWriter) -> None:
    ends: list[Disconnect] = []
    outbox.on_close = ends.append
    outbox.close(INVALID_TOKEN)
    outbox.close(SHUTDOWN)
    outbox.abandon(SLOW)
    assert (writer.disconnects, ends, outbox.closed) == ([INVALID_TOKEN], [INVALID_TOKEN], INVALID_TOKEN)


async def test_closed_outbox_takes_nothing(outbox: Outbox, writer: RecordingWriter) -> None:
    outbox.close(SHUTDOWN)
    outbox.send(b"late")
    await turns()
    assert writer.frames == []
    assert outbox.backlog == 0


async def test_abandoned_outbox_writes_and_closes_nothing(outbox: Outbox, writer: RecordingWriter) -> None:
    outbox.send(b"pending")
    outbox.abandon(SHUTDOWN)
    await turns()
    assert writer.frames == []
    assert writer.disconnects == []
    assert outbox.size == 0


async def test_closing_one_outbox_during_a_flush_leaves_the_others_alone(counts: list[float]) -> None:
    flusher, writers = Flusher(counts.append), [RecordingWriter() for _ in range(3)]
    outboxes = [Outbox(writer, flusher, LIMIT) for writer in writers]
    for outbox in outboxes:
        outbox.send(b"1")
    outboxes[1].abandon(SHUTDOWN)
    await turns(1)
    assert [writer.payloads for writer in writers] == [[b"1"], [], [b"1"]]
