"""The doubles of the unit tests, all of them. Each stands in for what is outside of our own classes: a clock, a socket,
a broker that fails when told to. The brokers wrap the memory engine, so that what they do when they work is real.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from broker.envelope import Batch, CommittedGroup, Position, Publication, decode_batch
from broker.errors import Refused, Unavailable
from broker.memory import MemoryRelayQueue, MemoryStreams
from broker.ports import Consumer, Delivery, Follower, Outcome, Page
from gateway.outbox import Frame
from gateway.protocol.codes import Disconnect
from tests.unit.waiting import BOUND_SECONDS

Json = dict[str, Any]


class SettableClock:
    """A clock that stands still until a test moves it. Seconds."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class RecordingWriter:
    """A Writer whose client reads everything at once, or leaves `unread` bytes and all that follows."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.disconnects: list[Disconnect] = []
        self.unread = 0
        self._changed = asyncio.Event()

    def write(self, frame: Frame) -> None:
        self.frames.append(frame)
        if self.unread:
            self.unread += len(frame.payload)
        self._notify()

    def buffered(self) -> int:
        return self.unread

    def close(self, disconnect: Disconnect) -> None:
        self.disconnects.append(disconnect)
        self._notify()

    @property
    def payloads(self) -> list[bytes]:
        """The text of every frame."""
        return [frame.payload for frame in self.frames]

    @property
    def messages(self) -> list[Json]:
        """Every reply and push, decoded, in order."""
        return [json.loads(line) for payload in self.payloads for line in payload.split(b"\n")]

    async def until(self, condition: Callable[["RecordingWriter"], object]) -> None:
        """Wait for writes until the condition holds."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not condition(self):
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class RecordingSubscriber:
    """A Subscriber of the hub that keeps what it hears; `on_deliver` and `on_lose` let it act in the middle of it."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.lost: list[str] = []
        self.on_deliver: Callable[[], object] = lambda: None
        self.on_lose: Callable[[], object] = lambda: None

    def deliver(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.on_deliver()

    def lose(self, channel: str) -> None:
        self.lost.append(channel)
        self.on_lose()

    @property
    def publications(self) -> list[Json]:
        """Every publication, decoded, in order."""
        lines = [line for frame in self.frames for line in frame.payload.split(b"\n")]
        return [json.loads(line)["push"]["pub"] for line in lines]

    @property
    def offsets(self) -> list[int]:
        """The offset of every publication, in order."""
        return [publication["offset"] for publication in self.publications]

    @property
    def data(self) -> list[Any]:
        """The data of every publication, in order."""
        return [publication["data"] for publication in self.publications]


class RecordingFollower:
    """A Follower that keeps what it is told."""

    def __init__(self) -> None:
        self.groups: list[CommittedGroup] = []
        self.suspects: list[str] = []

    def receive(self, group: CommittedGroup) -> None:
        self.groups.append(group)

    def suspect(self, channels: Collection[str]) -> None:
        self.suspects.extend(channels)


class RecordingRelayObserver:
    """A RelayObserver that keeps what it is told."""

    def __init__(self) -> None:
        self.commits: list[tuple[Batch, float]] = []
        self.deaths = 0

    def committed(self, batch: Batch, seconds: float) -> None:
        self.commits.append((batch, seconds))

    def dead(self) -> None:
        self.deaths += 1


class Gate:
    """A door that calls pass through; while it is shut they wait in front of it, in line."""

    def __init__(self) -> None:
        self._is_open = True
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._line)

    def shut(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        while self._line:
            self.let_one_pass()

    def let_one_pass(self) -> None:
        """Let the first in line pass, and the others wait on."""
        first = self._line.popleft()
        if not first.done():  # cancelled while it waited
            first.set_result(None)

    async def passed(self) -> None:
        if self._is_open:
            return
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        await place


class CommandedStreams(MemoryStreams):
    """MemoryStreams that does what a Redis far away does, on command: is away, is slow, loses live messages.

    Calls made are counted by name. It is `away` for every call, or for batches with the channels of `away_for`; calls
    wait at the `gate` before they are carried out, answers of reads at `answers` after that; batches whose sequence is
    in `refused` are; a `fault` is raised that no port may raise. Between it and its follower stands the test: while
    `deaf`, live groups do not arrive but pile up in `unheard`, from where `hear` lets them arrive in any order, often
    or never.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        if clock is None:
            super().__init__()
        else:
            super().__init__(clock=clock)
        self.away = False
        self.fault: Exception | None = None
        self.away_for: set[str] = set()
        self.refused: set[int] = set()
        self.deaf = False
        self.unheard: list[CommittedGroup] = []
        self.calls: dict[str, int] = {}
        self.gate = Gate()
        self.answers = Gate()
        self._listener: Follower | None = None

    async def _called(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        await self.gate.passed()
        if self.fault is not None:
            raise self.fault
        if self.away:
            raise Unavailable(f"{name}: the double was told to be away")

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        await self._called("append")
        if self.away_for & {group.channel for batch in batches for group in batch.groups}:
            raise Unavailable("append: the double was told to be away")
        outcomes: list[Outcome] = []
        for batch in batches:
            is_refused = batch.sequence in self.refused
            outcomes.extend([Refused("the double was told to")] if is_refused else await super().append([batch]))
        return outcomes

    # As another process uses the same Redis, whatever this one was told.

    async def commit(self, batch: Batch) -> None:
        """Commit a batch."""
        await super().append([batch])

    async def kept(self, channel: str) -> list[Publication]:
        """What is in the stream."""
        return (await super().read(channel, None, 1_000_000)).publications

    async def end(self, channel: str) -> Position:
        """Where the stream ends."""
        return (await super().positions([channel]))[0]

    # As Streams.

    async def read(self, channel: str, since: int | None, limit: int, *, reverse: bool = False) -> Page:
        await self._called("read")
        page = await super().read(channel, since, limit, reverse=reverse)
        await self.answers.passed()
        return page

    async def positions(self, channels: Sequence[str]) -> list[Position]:
        await self._called("positions")
        positions = await super().positions(channels)
        await self.answers.passed()
        return positions

    async def subscribe(self, channels: Collection[str]) -> None:
        await self._called("subscribe")
        await super().subscribe(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        self.calls["unsubscribe"] = self.calls.get("unsubscribe", 0) + 1
        await super().unsubscribe(channels)

    def follow(self, follower: Follower) -> None:
        self._listener = follower
        super().follow(self)

    def hear(self, group: CommittedGroup) -> None:
        """Let a live group arrive; the follower gets a copy, as it would of a message decoded twice."""
        assert self._listener is not None
        publications = [Publication(one.data, one.info, one.tags, one.time, one.offset) for one in group.publications]
        self._listener.receive(CommittedGroup(group.channel, group.epoch, group.offset, publications, group.committed))

    # As the Follower of the memory engine.

    def receive(self, group: CommittedGroup) -> None:
        if self.deaf:
            self.unheard.append(group)
        else:
            self.hear(group)

    def suspect(self, channels: Collection[str]) -> None:
        assert self._listener is not None
        self._listener.suspect(channels)


class CommandedQueue(MemoryRelayQueue):
    """MemoryRelayQueue whose `publish` fails on command, once for each of `failures`, storing nothing or all the same.

    `bodies` keeps what was handed in, also when it failed. With `is_lossy` a failed batch is not stored; without, it
    is: only its confirm was lost. While `away` nobody can consume from it, or learn how many do.
    """

    def __init__(self, shards: int = 1, failures: Iterable[Exception] = (), *, is_lossy: bool = True) -> None:
        super().__init__(shards)
        self.failures = deque(failures)
        self.bodies: list[bytes] = []
        self.gate = Gate()
        self.away = False
        self.asked_while_away = 0
        self._is_lossy = is_lossy
        self._changed = asyncio.Event()

    @property
    def batches(self) -> list[Batch]:
        """What was handed in, decoded."""
        return [decode_batch(body) for body in self.bodies]

    async def publish(self, shard: int, body: bytes) -> None:
        self.bodies.append(body)
        self._changed.set()
        self._changed = asyncio.Event()
        await self.gate.passed()
        failure = self.failures.popleft() if self.failures else None
        if failure is None or not self._is_lossy:
            await super().publish(shard, body)
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def consume(self, shard: int) -> AsyncIterator[Consumer]:
        self._check()
        async with super().consume(shard) as consumer:
            yield consumer

    async def relays(self) -> int:
        self._check()
        return await super().relays()

    def _check(self) -> None:
        if self.away:
            self.asked_while_away += 1
            raise Unavailable("the double was told to be away")

    async def until_handed_in(self, count: int) -> None:
        """Wait until `publish` was called that many times."""
        async with asyncio.timeout(BOUND_SECONDS):
            while len(self.bodies) < count:
                await self._changed.wait()


class StrictQueue(MemoryRelayQueue):
    """MemoryRelayQueue that minds tags as RabbitMQ does: to settle what is settled already ends the consumer.

    RabbitMQ answers 406 PRECONDITION_FAILED "unknown delivery tag" and closes the channel. `settled` keeps every
    acknowledgement and rejection, in order; `faults` what RabbitMQ would have refused.
    """

    def __init__(self, shards: int = 1) -> None:
        super().__init__(shards)
        self.settled: list[tuple[str, int]] = []
        self.faults: list[str] = []

    @asynccontextmanager
    async def consume(self, shard: int) -> AsyncIterator[Consumer]:
        async with super().consume(shard) as consumer:
            yield _StrictConsumer(consumer, self)


class _StrictConsumer:
    def __init__(self, consumer: Consumer, queue: StrictQueue) -> None:
        self._consumer = consumer
        self._queue = queue
        self._open: list[int] = []

    async def receive(self) -> Sequence[Delivery]:
        deliveries = await self._consumer.receive()
        self._open.extend(delivery.tag for delivery in deliveries)
        return deliveries

    async def acknowledge(self, tag: int) -> None:
        self._settle("acknowledge", tag)
        self._open = [one for one in self._open if one > tag]
        await self._consumer.acknowledge(tag)

    async def reject(self, tag: int) -> None:
        self._settle("reject", tag)
        self._open.remove(tag)
        await self._consumer.reject(tag)

    def _settle(self, how: str, tag: int) -> None:
        self._queue.settled.append((how, tag))
        if tag not in self._open:
            self._queue.faults.append(f"{how} {tag}: unknown delivery tag")
            raise Unavailable(self._queue.faults[-1])
