"""All ports in one process: the engine of `make run`, and the reference that the contract suite was written against."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from broker.envelope import (
    Batch,
    CommittedGroup,
    EncodedPublication,
    Group,
    Position,
    decode_committed,
    decode_publication,
    encode_committed,
)
from broker.errors import Refused, Unavailable
from broker.ports import Consumer, Delivery, Follower, Outcome, Page

_SWEEP_SECONDS = 60.0


class _Queue:
    """One shard: what waits, what the active consumer holds, and who stands in line."""

    def __init__(self) -> None:
        self.waiting: deque[Delivery] = deque()
        self.held: deque[Delivery] = deque()
        self.line: deque[MemoryConsumer] = deque()
        self.bytes = 0
        self.changed = asyncio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryConsumer:
    """A place in the line of one shard."""

    def __init__(self, queue: _Queue, dead: list[bytes]) -> None:
        self._queue = queue
        self._dead = dead

    async def receive(self) -> Sequence[Delivery]:
        while True:
            self._check()
            if self._queue.line[0] is self and self._queue.waiting:
                break
            await self._queue.changed.wait()
        deliveries = list(self._queue.waiting)
        self._queue.held.extend(deliveries)
        self._queue.waiting.clear()
        return deliveries

    async def acknowledge(self, tag: int) -> None:
        self._check()
        while self._queue.held and self._queue.held[0].tag <= tag:
            self._queue.bytes -= len(self._queue.held.popleft().body)

    async def reject(self, tag: int) -> None:
        self._check()
        for delivery in [held for held in self._queue.held if held.tag == tag]:
            self._queue.held.remove(delivery)
            self._queue.bytes -= len(delivery.body)
            self._dead.append(delivery.body)

    def _check(self) -> None:
        if self not in self._queue.line:
            raise Unavailable("memory: consumer is over")


class MemoryRelayQueue:
    """RelayQueue in this process: as durable as the process is."""

    def __init__(self, shards: int = 1, queue_max_bytes: int = 1 << 30) -> None:
        self._queues = [_Queue() for _ in range(shards)]
        self._queue_max_bytes = queue_max_bytes
        self._tags = 0
        self.dead: list[bytes] = []

    @property
    def shards(self) -> int:
        return len(self._queues)

    async def publish(self, shard: int, body: bytes) -> None:
        queue = self._queues[shard]
        if queue.bytes + len(body) > self._queue_max_bytes:
            raise Refused(f"relay queue {shard} is full: queue_max_bytes is {self._queue_max_bytes}")
        self._tags += 1
        queue.waiting.append(Delivery(self._tags, body))
        queue.bytes += len(body)
        queue.notify()

    @asynccontextmanager
    async def consume(self, shard: int) -> AsyncIterator[Consumer]:
        queue = self._queues[shard]
        consumer = MemoryConsumer(queue, self.dead)
        queue.line.append(consumer)
        try:
            yield consumer
        finally:
            if queue.line[0] is consumer:
                again = [Delivery(held.tag, held.body, redelivered=True) for held in queue.held]
                queue.waiting.extendleft(reversed(again))
                queue.held.clear()
            queue.line.remove(consumer)
            queue.notify()

    async def relays(self) -> int:
        return max(len(queue.line) for queue in self._queues)


class _Stream:
    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.offset = 0
        self.entries: deque[tuple[int, EncodedPublication]] = deque()
        self.sequences: dict[str, int] = {}
        self.entries_expire = 0.0
        self.expires = 0.0


class MemoryStreams:
    """Streams in this process. `clock` gives seconds and must never go back."""

    def __init__(self, position_ttl: float = 86_400.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._position_ttl = position_ttl
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._followed: set[str] = set()
        self._follower: Follower | None = None
        self._next_sweep = clock() + _SWEEP_SECONDS

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        return [[self._append(batch, group) for group in batch.groups] for batch in batches]

    def _append(self, batch: Batch, group: Group) -> Position:
        stream = self._stream(group.channel)
        if stream.sequences.get(batch.publisher, 0) < batch.sequence:
            stream.sequences[batch.publisher] = batch.sequence
            first = stream.offset + 1
            stream.offset += len(group.publications)
            if group.retention.size and group.retention.ttl:
                stream.entries.extend(enumerate(group.publications, first))
                while len(stream.entries) > group.retention.size:
                    stream.entries.popleft()
                stream.entries_expire = self._clock() + group.retention.ttl
            self._tell(group.channel, stream.epoch, first, group.publications)
        return Position(stream.epoch, stream.offset)

    def _tell(self, channel: str, epoch: str, offset: int, publications: Sequence[EncodedPublication]) -> None:
        if channel not in self._followed or not publications:
            return
        # Through the same bytes as Redis, and on a later turn of the loop: a follower never runs inside an append.
        message = encode_committed(epoch, offset, time.time(), publications)
        asyncio.get_running_loop().call_soon(self._deliver, decode_committed(channel, message))

    def _deliver(self, group: CommittedGroup) -> None:
        if self._follower and group.channel in self._followed:
            self._follower.receive(group)

    async def read(self, channel: str, since: int | None, limit: int, *, reverse: bool = False) -> Page:
        stream = self._stream(channel)
        if reverse:
            found = [entry for entry in reversed(stream.entries) if since is None or entry[0] < since]
        else:
            found = [entry for entry in stream.entries if entry[0] > (since or 0)]
        publications = [decode_publication(encoded, offset) for offset, encoded in found[:limit]]
        return Page(Position(stream.epoch, stream.offset), publications)

    async def positions(self, channels: Sequence[str]) -> list[Position]:
        streams = [self._stream(channel) for channel in channels]
        return [Position(stream.epoch, stream.offset) for stream in streams]

    async def subscribe(self, channels: Collection[str]) -> None:
        self._followed.update(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        self._followed.difference_update(channels)

    def follow(self, follower: Follower) -> None:
        self._follower = follower

    def forget(self, channel: str) -> None:
        """Lose a channel, as a Redis does that restarts without its data (for tests of what follows)."""
        self._streams.pop(channel, None)

    def _stream(self, channel: str) -> _Stream:
        now = self._clock()
        stream = self._streams.get(channel)
        if stream is None or stream.expires < now:
            self._sweep(now)
            stream = self._streams[channel] = _Stream()
        stream.expires = now + self._position_ttl
        if stream.entries and stream.entries_expire < now:
            stream.entries.clear()
        return stream

    def _sweep(self, now: float) -> None:
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_SECONDS
        for channel in [name for name, stream in self._streams.items() if stream.expires < now]:
            del self._streams[channel]
