"""The contracts between the gateway and what holds its state. tests/contract/ holds every engine to them.

Together they give: a publication whose `RelayQueue.publish` returned reaches the stream of its channel once, in the
order its publisher handed it in, whatever is killed or restarted on the way; and a follower that compares positions
sees every publication of a stream that is still kept, in one order, whatever its live connection lost.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from broker.envelope import Batch, CommittedGroup, Position, Publication
from broker.errors import Refused


class Delivery(msgspec.Struct, frozen=True):
    """One batch out of a relay queue: its bytes, and the tag that settles it within its consumer."""

    tag: int
    body: bytes
    redelivered: bool = False


class Consumer(Protocol):
    """The one active reader of a shard, in queue order, at least once."""

    async def receive(self) -> Sequence[Delivery]:
        """Wait for at least one delivery and return all that have arrived, in order.

        Raises Unavailable when this consumer is over; what it had not acknowledged will be delivered again, in order.
        """

    async def acknowledge(self, tag: int) -> None:
        """Settle the delivery with this tag and all before it: they are never delivered again. Raises Unavailable."""

    async def reject(self, tag: int) -> None:
        """Move this one delivery to the dead-letter queue, for a person to look at. Raises Unavailable."""


class RelayQueue(Protocol):
    """Durable queues between nodes and relays, one per shard (0 … `shards` - 1)."""

    @property
    def shards(self) -> int:
        """How many there are; every node and relay must agree."""

    async def publish(self, shard: int, body: bytes) -> None:
        """Store a batch at the end of the shard's queue; returning means it survives a restart of every process.

        Raises Refused when the queue will not take it, Unavailable when the outcome is unknown.
        """

    def consume(self, shard: int) -> AbstractAsyncContextManager[Consumer]:
        """Stand in line to read the shard. One consumer is active at a time; the next in line follows when it leaves.

        Leaving the context hands back, in order, what was not acknowledged. Raises Unavailable on entering.
        """

    async def relays(self) -> int:
        """How many processes consume from these queues, this one included. Raises Unavailable."""


class Page(msgspec.Struct, frozen=True):
    """A part of a stream, and the position of the stream's end when it was read."""

    end: Position
    publications: list[Publication]


class Follower(Protocol):
    """Who hears what is committed in the channels that this process subscribed to. Called synchronously, in order."""

    def receive(self, group: CommittedGroup) -> None:
        """Take a group. Live delivery is at most once: compare the offsets and `Streams.read` what is missing."""

    def suspect(self, channels: Collection[str]) -> None:
        """Learn that publications in these channels may have gone by unheard: compare positions."""


Outcome = list[Position] | Refused
"""What became of a batch: for each of its groups the position after it, or why the engine will never take it."""


class Streams(Protocol):
    """Channel streams: an ordered log per channel that followers hear live and can re-read.

    Appends to one channel are atomic and totally ordered; every follower sees that order. A stream has an epoch
    (a new random one whenever its offsets start again) and offsets 1, 2, 3 …
    """

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Commit batches, in order, once each however often handed in, and tell the followers.

        A repeated batch changes nothing and yields the present positions. Raises Unavailable when the outcome of any
        is unknown; handing in the same batches again, in the same order, is safe.
        """

    async def read(self, channel: str, since: int | None, limit: int, *, reverse: bool = False) -> Page:
        """Read up to `limit` publications after offset `since` (None: from the first kept; `reverse`: before it,
        newest first), and the end of the stream. A channel never seen begins its epoch here. Raises Unavailable.
        """

    async def positions(self, channels: Sequence[str]) -> list[Position]:
        """Return the end of each channel's stream, in the order asked. Raises Unavailable."""

    async def subscribe(self, channels: Collection[str]) -> None:
        """Follow channels: whatever is committed after this returns reaches the follower or makes it suspect.

        Raises Unavailable; then none of them counts as followed.
        """

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Follow these no longer. Takes effect even while the engine is away."""

    def follow(self, follower: Follower) -> None:
        """Name who hears the channels of this process. Called once, before the first `subscribe`."""


Observer = Callable[[str], None]
"""Told the name of a peer ("redis", "rabbitmq") each time its lost connection is back."""
