"""Envelopes come back from their bytes as they were; bytes that are none raise Malformed, and nothing else."""

import hashlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.envelope import (
    Batch,
    ClientInfo,
    CommittedGroup,
    Group,
    Publication,
    Retention,
    decode_batch,
    decode_committed,
    decode_publication,
    encode_batch,
    encode_committed,
    encode_publication,
    shard_of,
)
from broker.errors import Malformed

words = st.text(max_size=30)
blobs = st.binary(max_size=100)
infos = st.builds(ClientInfo, user=words, client=words, conn_info=blobs)
publications = st.builds(
    Publication,
    data=blobs,
    info=st.none() | infos,
    tags=st.none() | st.dictionaries(words, words, max_size=3),
    time=st.integers(0, 2**53),
)
retentions = st.builds(Retention, size=st.integers(0, 10**6), ttl=st.floats(0, 1e9))
groups = st.builds(Group, channel=words, retention=retentions, publications=st.lists(blobs, max_size=4))
batches = st.builds(
    Batch,
    publisher=words,
    sequence=st.integers(0, 2**63 - 1),
    groups=st.lists(groups, max_size=4),
    sent=st.floats(0, 1e12),
)
epochs = st.text(st.characters(codec="utf-8", exclude_characters=" \n"), min_size=1, max_size=16)


@given(publications, st.integers(0, 2**53))
def test_publication_comes_back_as_it_was_at_the_offset_it_stands_at(publication: Publication, offset: int) -> None:
    decoded = decode_publication(encode_publication(publication), offset)
    assert decoded == msgspec.structs.replace(publication, offset=offset)


@given(publications)
def test_decoding_and_encoding_again_gives_a_publication_at_offset_0_the_same_bytes(publication: Publication) -> None:
    encoded = encode_publication(publication)
    assert encode_publication(decode_publication(encoded, 0)) == encoded


@given(batches)
def test_batch_comes_back_as_it_was(batch: Batch) -> None:
    assert decode_batch(encode_batch(batch)) == batch


@given(words, epochs, st.integers(1, 2**53), st.integers(0, 2_000_000_000), st.lists(publications, max_size=5))
def test_committed_group_comes_back_with_consecutive_offsets(
    channel: str, epoch: str, offset: int, committed: int, sent: list[Publication]
) -> None:
    message = encode_committed(epoch, offset, committed, [encode_publication(one) for one in sent])
    group = decode_committed(channel, message)
    expected = [msgspec.structs.replace(one, offset=offset + index) for index, one in enumerate(sent)]
    assert group == CommittedGroup(channel, epoch, offset, expected, float(committed))
    assert group.last_offset == offset + len(sent) - 1


def test_committed_group_keeps_microseconds_of_its_commit() -> None:
    assert decode_committed("c", encode_committed("e", 1, 1_763_800_000.123456, [])).committed == 1_763_800_000.123456


def test_encoded_publication_does_not_grow_with_what_is_left_out() -> None:
    whole = Publication(b"1", ClientInfo("user", "client"), {"tag": "value"}, 1_763_800_000_000)
    assert len(encode_publication(Publication(b"1"))) < 10 < len(encode_publication(whole))


# Bytes that are no envelope.

DECODERS: dict[str, Callable[[bytes], object]] = {
    "publication": lambda data: decode_publication(data, 1),
    "batch": decode_batch,
    "committed group": lambda data: decode_committed("c", data),
}
decoders = st.sampled_from(sorted(DECODERS))

DEEP = b"\x91" * 100_000  # arrays in arrays, where a newer version may put what this one skips
NOT_UTF8 = b"\xa1\xff"  # a MessagePack string of one byte

MALFORMED: list[tuple[str, str, bytes]] = [
    ("publication", "nothing", b""),
    ("publication", "JSON", b'{"data": 1}'),
    ("publication", "a map", b"\x80"),
    ("publication", "an empty array", b"\x90"),
    ("publication", "data that is text", b"\x91\xa1a"),
    ("publication", "two publications", encode_publication(Publication(b"1")) * 2),
    ("publication", "half a publication", encode_publication(Publication(b"123456"))[:-20]),
    ("batch", "nothing", b""),
    ("batch", "a publication", encode_publication(Publication(b"1"))),
    ("batch", "a sequence that is text", b"\x93\xa1a\xa1b\x90"),
    ("batch", "a group without publications", b"\x93\xa1a\x01\x91\x91\xa1c"),
    ("batch", "half a batch", encode_batch(Batch("p", 1, [Group("c", Retention(), [b"1"])]))[:-10]),
    ("committed group", "nothing", b""),
    ("committed group", "no line break", b"e 1 0 1.0"),
    ("committed group", "too few words", b"e 1 0\n"),
    ("committed group", "too many words", b"e 1 0 1.0 x\n"),
    ("committed group", "an offset that is no number", b"e x 0 1.0\n"),
    ("committed group", "an offset too long to be a number", b"e " + b"9" * 5000 + b" 0 1.0\n"),
    ("committed group", "a negative count", b"e 1 -1 1.0\n"),
    ("committed group", "a count past 32 bits", b"e 1 4294967296 1.0\n"),
    ("committed group", "a count past what is there", b"e 1 4294967295 1.0\n"),
    ("committed group", "a count below what is there", b"e 1 0 1.0\n" + encode_publication(Publication(b"1"))),
    ("committed group", "an epoch that is not UTF-8", b"\xff 1 0 1.0\n"),
    ("committed group", "a time that is no number", b"e 1 0 x\n"),
    ("committed group", "a tag that is not UTF-8", b"e 1 1 1.0\n\x93\xc4\x01a\xc0\x81" + NOT_UTF8 + b"\xa1a"),
]


@pytest.mark.parametrize(
    ("kind", "data"),
    [(kind, data) for kind, _, data in MALFORMED],
    ids=[f"{kind}: {what}" for kind, what, _ in MALFORMED],
)
def test_what_is_no_envelope_is_malformed(kind: str, data: bytes) -> None:
    with pytest.raises(Malformed, match=kind):
        DECODERS[kind](data)


LEAKS: list[tuple[str, str, bytes]] = [
    ("publication", "a tag that is not UTF-8", b"\x93\xc4\x01a\xc0\x81" + NOT_UTF8 + b"\xa1a"),
    ("publication", "nested too deep", b"\x96\xc4\x01a\xc0\xc0\x00\x00" + DEEP + b"\x00"),
    ("batch", "a publisher that is not UTF-8", b"\x93" + NOT_UTF8 + b"\x01\x90"),
    ("batch", "nested too deep", b"\x95\xa1a\x01\x90\xcb" + bytes(8) + DEEP + b"\x00"),
    ("committed group", "nested too deep", b"e 1 1 1.0\n\x96\xc4\x01a\xc0\xc0\x00\x00" + DEEP + b"\x00"),
]


@pytest.mark.parametrize(
    ("kind", "data"), [(kind, data) for kind, _, data in LEAKS], ids=[f"{kind}: {what}" for kind, what, _ in LEAKS]
)
def test_what_the_decoder_raises_in_its_own_way_is_malformed_too(kind: str, data: bytes) -> None:
    with pytest.raises(Malformed, match=kind):
        DECODERS[kind](data)


def attempt(kind: str, data: bytes) -> object:
    """Decode; Malformed is the one thing that may come instead of an envelope."""
    try:
        return DECODERS[kind](data)
    except Malformed as error:
        return error


@given(decoders, st.binary(max_size=200))
@example("batch", b"\x93\xa1\xff")
def test_arbitrary_bytes_are_an_envelope_or_malformed(kind: str, data: bytes) -> None:
    assert attempt(kind, data) is not None


@given(decoders, batches, publications, st.data())
def test_an_envelope_with_bytes_changed_is_an_envelope_or_malformed(
    kind: str, batch: Batch, publication: Publication, data: st.DataObject
) -> None:
    valid = {
        "publication": encode_publication(publication),
        "batch": encode_batch(batch),
        "committed group": encode_committed("e", 1, 1.0, [encode_publication(publication)] * 2),
    }[kind]
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    assert attempt(kind, bytes(changed[:cut])) is not None
    assert attempt(kind, bytes(changed)) is not None


# Shards.


@given(words, st.integers(1, 1024))
def test_shard_is_one_of_the_shards(channel: str, shards: int) -> None:
    assert 0 <= shard_of(channel, shards) < shards


@pytest.mark.parametrize(
    ("channel", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)], ids=["empty", "a", "foobar"]
)
def test_shard_is_fnv_1a_so_that_other_languages_find_it(channel: str, value: int) -> None:
    # The test vectors of the FNV page (isthe.com/chongo/tech/comp/fnv), 32 bits, FNV-1a.
    assert shard_of(channel, 1 << 32) == value


def test_channels_spread_over_all_shards() -> None:
    shards = [shard_of(f"room:{hashlib.sha256(bytes([n])).hexdigest()[:8]}", 8) for n in range(256)]
    assert min(shards.count(shard) for shard in range(8)) >= 10
