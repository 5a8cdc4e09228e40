"""What the contract tests share: waiting, batches, and the doubles that listen."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from broker.envelope import (
    Batch,
    CommittedGroup,
    Group,
    Publication,
    Retention,
    encode_publication,
)
from broker.errors import Unavailable
from broker.ports import Consumer, Delivery, Page, Streams

T = TypeVar("T")

KEPT = Retention(10_000, 600.0)
NOT_KEPT = Retention()

Start = Callable[[Awaitable[None]], object]


async def eventually(condition: Callable[..., object], *, within: float = 20.0, pause: float | None = None) -> None:
    """Wait until the condition, a function or a coroutine function, is true; ask every `pause` seconds, or ever slower.

    The only place in these tests that sleeps: for what no engine tells by itself.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    growing = 0.0002
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return
        assert loop.time() < deadline, f"not within {within:g} s; the last answer was {result!r}"
        growing = min(0.02, growing * 2)
        await asyncio.sleep(growing if pause is None else pause)


async def turns(count: int) -> None:
    """Let the event loop go round some times."""
    remaining = iter(range(count))
    await eventually(lambda: next(remaining, None) is None, pause=0)


async def insist(call: Callable[..., Awaitable[T]], *, within: float = 40.0) -> T:
    """Call until it does not raise Unavailable, as publishers and relays do, and return what it returns."""
    results: list[T] = []

    async def attempt() -> bool:
        try:
            results.append(await call())
        except Unavailable:
            return False
        return True

    await eventually(attempt, within=within, pause=0.05)
    return results[0]


@asynccontextmanager
async def keepers() -> AsyncIterator[Start]:
    """Yield what starts connection keepers; they are cancelled in the end. One that died fails the test."""
    tasks: list[asyncio.Future[None]] = []

    def start(keeper: Awaitable[None]) -> None:
        tasks.append(asyncio.ensure_future(keeper))

    try:
        yield start
    finally:
        for task in tasks:
            task.cancel()
        died = [
            result for result in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(result, Exception)
        ]
        assert died == []


@asynccontextmanager
async def running(coroutine: Coroutine[object, object, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run a coroutine beside the block, until the block ends at the latest. Await the task to learn how it went."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        await cancelled(task)
        if not task.cancelled():
            task.exception()  # whoever wants to know has awaited it


async def cancelled(task: asyncio.Task[T]) -> None:
    """Cancel a task and wait until it has ended. One that goes on all the same fails the test."""
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=20)
    if not done:  # a library has swallowed it, as wait_for of Python 3.11 does; do not leave the task to other tests
        task.cancel()
        await asyncio.wait([task], timeout=20)
    assert done, f"goes on though it was cancelled: {task}"


def batch(
    sequence: int,
    groups: Mapping[str, Iterable[bytes]],
    *,
    publisher: str = "publisher",
    retention: Retention = KEPT,
) -> Batch:
    """A batch that publishes these data in these channels."""
    return Batch(
        publisher,
        sequence,
        [
            Group(channel, retention, [encode_publication(Publication(data)) for data in published])
            for channel, published in groups.items()
        ],
    )


def numbered(count: int, prefix: str = "") -> list[bytes]:
    """Return `count` different data."""
    return [f"{prefix}{number}".encode() for number in range(1, count + 1)]


def placed(publications: Iterable[Publication]) -> list[tuple[int, bytes]]:
    """Offsets and data of publications."""
    return [(publication.offset, publication.data) for publication in publications]


async def everything(streams: Streams, channel: str) -> Page:
    """All that a channel keeps."""
    return await streams.read(channel, None, 1_000_000)


class Ear:
    """A follower that remembers what it heard, and when it was made suspect."""

    def __init__(self) -> None:
        self.events: list[CommittedGroup | frozenset[str]] = []

    def receive(self, group: CommittedGroup) -> None:
        self.events.append(group)

    def suspect(self, channels: Collection[str]) -> None:
        self.events.append(frozenset(channels))

    def groups(self, channel: str) -> list[CommittedGroup]:
        """The groups heard of a channel."""
        return [event for event in self.events if isinstance(event, CommittedGroup) and event.channel == channel]

    def heard(self, channel: str) -> list[tuple[int, bytes]]:
        """Offsets and data heard of a channel."""
        return [pair for group in self.groups(channel) for pair in placed(group.publications)]

    def suspicions(self, channel: str) -> int:
        """How often it was told that it may have missed something of a channel."""
        return sum(channel in event for event in self.events if isinstance(event, frozenset))

    def unnoticed_gaps(self, channel: str, heard_before: int, end: int) -> list[tuple[int, int]]:
        """Runs of offsets, from after `heard_before` to `end`, that went by without a suspicion afterwards."""
        gaps, position, missed = [], heard_before, False
        for event in self.events:
            if isinstance(event, frozenset):
                missed = missed or channel in event
            elif event.channel == channel:
                if event.offset > position + 1 and not missed:
                    gaps.append((position + 1, event.offset - 1))
                position, missed = max(position, event.last_offset), False
        if position < end and not missed:
            gaps.append((position + 1, end))
        return gaps


class Sentinel:
    """A channel of its own: once its latest publication was heard, all that was committed before was heard too."""

    def __init__(self, streams: Streams, ear: Ear) -> None:
        self._streams = streams
        self._ear = ear
        self._sequence = 0

    async def passed(self) -> None:
        """Wait until everything committed so far was heard, if it ever will be. The live connection must stand."""
        if not self._sequence:
            await self._streams.subscribe(["sentinel"])
        self._sequence += 1
        await self._streams.append(
            [batch(self._sequence, {"sentinel": [b"passed"]}, publisher="sentinel", retention=NOT_KEPT)]
        )
        await eventually(lambda: len(self._ear.groups("sentinel")) >= self._sequence)


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Receive exactly `count` deliveries."""
    deliveries: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(deliveries) < count:
            deliveries += await consumer.receive()
    assert len(deliveries) == count, bodies(deliveries)
    return deliveries


async def drain(consumer: Consumer, count: int) -> list[Delivery]:
    """Receive and acknowledge exactly `count` deliveries."""
    received: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(received) < count:
            deliveries = await consumer.receive()
            assert deliveries
            received += deliveries
            await consumer.acknowledge(deliveries[-1].tag)
    assert len(received) == count, bodies(received)
    return received


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    """The bodies of deliveries, in order."""
    return [delivery.body for delivery in deliveries]
