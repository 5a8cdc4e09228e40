"""What travels between nodes, relays and Redis, and its bytes (MessagePack arrays).

A publication is encoded once, by the node that took it, and stays those bytes through RabbitMQ, the relay and the
Redis stream; only the hubs that deliver it decode it again. Everything around it is built to pass it on untouched:

    Batch          node → RabbitMQ → relay      groups of one shard, in order
      Group        one channel's part of it     encoded publications and how long to keep them
    CommittedGroup Redis → hubs                 a group with its epoch and offsets
"""

from collections.abc import Sequence

import msgspec

from broker.errors import Malformed

EncodedPublication = bytes
"""A Publication as MessagePack."""


class ClientInfo(msgspec.Struct, array_like=True, frozen=True):
    """Who published: user and client id, and the JSON that the connection token attached to them."""

    user: str
    client: str
    conn_info: bytes = b""


class Publication(msgspec.Struct, array_like=True):
    """One message in a channel. `data` is raw JSON; `time` is Unix time in milliseconds, when the node took it.

    `offset` is its place in the channel's stream: 0 until it is committed, never part of the encoded bytes.
    """

    data: bytes
    info: ClientInfo | None = None
    tags: dict[str, str] | None = None
    time: int = 0
    offset: int = 0


class Position(msgspec.Struct, array_like=True, frozen=True):
    """A place in a channel's stream: the last offset seen, within an epoch. Offset 0 is before the first."""

    epoch: str
    offset: int


class Retention(msgspec.Struct, array_like=True, frozen=True):
    """How much of a channel is kept: at most `size` publications, for `ttl` seconds after the last. 0: nothing."""

    size: int = 0
    ttl: float = 0.0


class Group(msgspec.Struct, array_like=True):
    """The publications of one channel in a batch, in order."""

    channel: str
    retention: Retention
    publications: list[EncodedPublication]


class Batch(msgspec.Struct, array_like=True):
    """What one publisher hands over at once. Its identity is (`publisher`, `sequence`).

    A publisher numbers its batches of a shard 1, 2, 3 … and hands in the next only when the one before is settled;
    so a batch whose number a channel has seen, or passed, is a repetition. `sent` is Unix time in seconds.
    """

    publisher: str
    sequence: int
    groups: list[Group]
    sent: float = 0.0


class CommittedGroup(msgspec.Struct):
    """A contiguous run of a channel's stream; the first publication has `offset`, `committed` is Unix seconds."""

    channel: str
    epoch: str
    offset: int
    publications: list[Publication]
    committed: float = 0.0

    @property
    def last_offset(self) -> int:
        """Offset of the last publication."""
        return self.offset + len(self.publications) - 1


# msgspec lets some errors of Python's own through: UnicodeDecodeError (a ValueError), RecursionError.
_UNDECODABLE = (msgspec.DecodeError, ValueError, OverflowError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_batches = msgspec.msgpack.Decoder(Batch)
_publication = msgspec.msgpack.Decoder(Publication)
_publications = msgspec.msgpack.Decoder(list[Publication])


def encode_publication(publication: Publication) -> EncodedPublication:
    """Encode a publication for its way through the brokers."""
    return _encoder.encode(publication)


def decode_publication(encoded: bytes, offset: int) -> Publication:
    """Decode a publication that stands at `offset` of its stream. Raises Malformed."""
    try:
        publication = _publication.decode(encoded)
    except _UNDECODABLE as error:
        raise Malformed(f"publication: {error}") from None
    publication.offset = offset
    return publication


def encode_batch(batch: Batch) -> bytes:
    """Encode a batch for a relay queue."""
    return _encoder.encode(batch)


def decode_batch(body: bytes) -> Batch:
    """Decode a batch. Raises Malformed."""
    try:
        return _batches.decode(body)
    except _UNDECODABLE as error:
        raise Malformed(f"batch: {error}") from None


def encode_committed(epoch: str, offset: int, committed: float, publications: Sequence[EncodedPublication]) -> bytes:
    """Encode a committed group for pub/sub: a line of text, then the encoded publications one after the other.

    The Redis script builds the same bytes (lua/commit.lua): it can join strings, and need not know MessagePack.
    """
    return b"%s %d %d %.6f\n" % (epoch.encode(), offset, len(publications), committed) + b"".join(publications)


def decode_committed(channel: str, message: bytes) -> CommittedGroup:
    """Decode what `encode_committed` made. Raises Malformed."""
    try:
        head, body = message.split(b"\n", 1)
        epoch, offset, count, committed = head.split(b" ")
        first = int(offset)
        publications = _publications.decode(b"\xdd" + int(count).to_bytes(4, "big") + body)  # array32, then its items
        for index, publication in enumerate(publications):
            publication.offset = first + index
        return CommittedGroup(channel, epoch.decode(), first, publications, float(committed))
    except _UNDECODABLE as error:
        raise Malformed(f"committed group of {channel!r}: {error}") from None


def shard_of(channel: str, shards: int) -> int:
    """Return the shard of a channel: FNV-1a of its UTF-8 bytes, the same on every node and in every language."""
    value = 0x811C9DC5
    for byte in channel.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value % shards
