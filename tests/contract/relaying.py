"""What the tests of the relay share: publishers as nodes are, relays that can be cut short, and the comparison."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from broker.envelope import Batch, Position, encode_batch, shard_of
from broker.errors import Unavailable
from broker.ports import Follower, Outcome, Page, RelayQueue, Streams
from broker.relay import Relay

from .support import batch, cancelled, eventually, everything, insist

CHANNELS = [f"channel-{number}" for number in range(12)]


class Log:
    """A RelayObserver that remembers."""

    def __init__(self) -> None:
        self.committed_batches: list[tuple[str, int]] = []
        self.dead_batches = 0

    def committed(self, batch: Batch, seconds: float) -> None:
        self.committed_batches.append((batch.publisher, batch.sequence))

    def dead(self) -> None:
        self.dead_batches += 1


class Node:
    """Publishes numbered data in CHANNELS as a node does: each shard one batch at a time, repeated until settled."""

    def __init__(self, name: str, queue: RelayQueue) -> None:
        self.name = name
        self.confirmed = 0
        """Batches confirmed so far."""
        self._queue = queue
        self._published: dict[str, list[bytes]] = defaultdict(list)
        self._sequences = [0] * queue.shards

    async def publish(self, rounds: int) -> None:
        """Publish in every channel, so many times."""
        for _ in range(rounds):
            async with asyncio.TaskGroup() as tasks:
                for shard in range(self._queue.shards):
                    tasks.create_task(self._publish(shard))

    async def _publish(self, shard: int) -> None:
        groups = {
            channel: [f"{self.name}-{len(self._published[channel]) + extra}".encode() for extra in (1, 2)]
            for channel in CHANNELS
            if shard_of(channel, self._queue.shards) == shard
        }
        for channel, data in groups.items():
            self._published[channel] += data
        self._sequences[shard] += 1
        one = batch(self._sequences[shard], groups, publisher=f"{self.name}.{shard}")
        body = encode_batch(one)
        await insist(lambda: self._queue.publish(shard, body))
        self.confirmed += 1

    async def all_committed(self, streams: Streams, others: Sequence["Node"] = ()) -> None:
        """Wait until as much is committed as these nodes published, and hold it to be each once and in order."""
        nodes = [self, *others]
        expected = [sum(len(node._published[channel]) for node in nodes) for channel in CHANNELS]

        async def arrived() -> bool:
            positions = await insist(lambda: streams.positions(CHANNELS))
            return all(position.offset >= count for position, count in zip(positions, expected, strict=True))

        await eventually(arrived, within=60, pause=0.02)
        for channel, count in zip(CHANNELS, expected, strict=True):
            page = await everything(streams, channel)
            data = [publication.data for publication in page.publications]
            assert [publication.offset for publication in page.publications] == list(range(1, count + 1))
            assert page.end.offset == count
            for node in nodes:
                mark = f"{node.name}-".encode()
                assert [one for one in data if one.startswith(mark)] == node._published[channel]


@asynccontextmanager
async def relaying(
    queue: RelayQueue, streams: Streams, log: Log | None = None, *, rebalance_seconds: float = 3600.0
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a relay beside the block. It is cancelled in the end, wherever it stands; one that died fails the test."""
    relay = Relay(queue, streams, observer=log or Log(), rebalance_seconds=rebalance_seconds)
    task = asyncio.create_task(relay.run())
    try:
        yield task
    finally:
        await cancelled(task)
        if not task.cancelled():
            task.result()


class StreamsWithFaults:
    """Streams whose appends fail when told to: before the commit, after it, or by never returning after it."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.fail_before = 0
        """How many more appends raise Unavailable and commit nothing."""
        self.fail_after = 0
        """How many more appends raise Unavailable though they have committed."""
        self.hang_after = asyncio.Event()
        """Once set, an append commits and never returns."""
        self.hanging = asyncio.Event()
        """Set when an append has committed and will never return."""

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        if self.fail_before:
            self.fail_before -= 1
            raise Unavailable("fault injected before the commit")
        outcomes = await self._streams.append(batches)
        if self.hang_after.is_set():
            self.hanging.set()
            await asyncio.Event().wait()
        if self.fail_after:
            self.fail_after -= 1
            raise Unavailable("fault injected after the commit")
        return outcomes

    async def read(self, channel: str, since: int | None, limit: int, *, reverse: bool = False) -> Page:
        return await self._streams.read(channel, since, limit, reverse=reverse)

    async def positions(self, channels: Sequence[str]) -> list[Position]:
        return await self._streams.positions(channels)

    async def subscribe(self, channels: Collection[str]) -> None:
        await self._streams.subscribe(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        await self._streams.unsubscribe(channels)

    def follow(self, follower: Follower) -> None:
        self._streams.follow(follower)
