"""From the sessions of a node to the brokers, in batches: one lane per shard, one batch of a lane under way at a time.

While a batch is under way the next one fills, so batches grow with the load and an idle lane waits for nothing. One at
a time keeps the order and makes repetition safe: the batch whose outcome is unknown is handed in again, with its
number, before any later one (broker/envelope.py: Batch).
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from broker.envelope import Batch, EncodedPublication, Group, Publication, encode_batch, encode_publication, shard_of
from broker.errors import BrokerError, Refused, Unavailable
from broker.ports import RelayQueue, Streams
from gateway.channels import ChannelOptions
from gateway.metrics import NodeMetrics
from gateway.settings import PublisherSettings

log = structlog.get_logger(__name__)

Settled = Callable[[BrokerError | None], None]
"""Called once per publication: None when it is stored, else why it is not, or may not be (Unavailable)."""

_PAUSE_SECONDS = 0.02
_PAUSE_MAX_SECONDS = 0.5


@dataclass(slots=True)
class _Waiting:
    channel: str
    options: ChannelOptions
    encoded: EncodedPublication
    settled: Settled
    since: float


class _Lane:
    """The publications of one shard, in order."""

    def __init__(self, name: str, send: Callable[[Batch], Awaitable[None]], settings: PublisherSettings) -> None:
        self._name = name
        self._send = send
        self._settings = settings
        self._sequence = 0
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self.idle.clear()
        self._changed.set()

    async def run(self, metrics: NodeMetrics, release: Callable[[int], None]) -> None:
        """Send batches for ever."""
        while True:
            if not self._waiting:
                self.idle.set()
                self._changed.clear()
                await self._changed.wait()
            self._give_up_late(release)
            taken = self._take()
            if not taken:
                continue
            self._sequence += 1
            batch = Batch(self._name, self._sequence, _groups(taken))
            metrics.batch_publications.observe(len(taken))
            error = await self._settle(batch, taken[0].since + self._settings.timeout_seconds)
            if error is None:
                metrics.confirm_seconds.observe(time.monotonic() - taken[0].since)
            release(sum(len(waiting.encoded) for waiting in taken))
            for waiting in taken:
                waiting.settled(error)

    def _give_up_late(self, release: Callable[[int], None]) -> None:
        """Settle what waited for its whole time behind others; it was never handed in."""
        now = time.monotonic()
        while self._waiting and self._waiting[0].since + self._settings.timeout_seconds <= now:
            late = self._waiting.popleft()
            release(len(late.encoded))
            late.settled(Unavailable("publisher.timeout_seconds are over"))

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        size = 0
        while self._waiting and len(taken) < self._settings.batch_max_publications:
            size += len(self._waiting[0].encoded)
            if taken and size > self._settings.batch_max_bytes:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _settle(self, batch: Batch, deadline: float) -> BrokerError | None:
        """Hand in the batch until its outcome is known or the deadline is over."""
        pause = _PAUSE_SECONDS
        while True:
            batch.sent = time.time()
            try:
                await self._send(batch)
            except Refused as error:
                log.warning("batch refused", lane=self._name, error=str(error))
                return error
            except Unavailable as error:
                if time.monotonic() + pause > deadline:
                    log.warning("batch given up", lane=self._name, error=str(error))
                    return error
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(_PAUSE_MAX_SECONDS, pause * 2)
            else:
                return None


def _groups(taken: list[_Waiting]) -> list[Group]:
    groups: dict[str, Group] = {}
    for waiting in taken:
        group = groups.get(waiting.channel)
        if group is None:
            group = groups[waiting.channel] = Group(waiting.channel, waiting.options.retention, [])
        group.publications.append(waiting.encoded)
    return list(groups.values())


class Publisher:
    """Takes publications from sessions and settles each one. Bounded: past `pending_max_bytes` it refuses."""

    def __init__(
        self, node: str, queue: RelayQueue, streams: Streams, settings: PublisherSettings, metrics: NodeMetrics
    ) -> None:
        self._queue = queue
        self._streams = streams
        self._settings = settings
        self._metrics = metrics
        self._pending_bytes = 0
        self._durable = [_Lane(f"{node}.{shard}", self._sender(shard), settings) for shard in range(queue.shards)]
        self._direct = [_Lane(f"{node}.direct.{shard}", self._commit, settings) for shard in range(queue.shards)]

    def publish(self, channel: str, options: ChannelOptions, publication: Publication, settled: Settled) -> None:
        """Take a publication; `settled` is called later, once. Raises Refused when too much is waiting already."""
        encoded = encode_publication(publication)
        if self._pending_bytes + len(encoded) > self._settings.pending_max_bytes:
            raise Refused(f"publisher.pending_max_bytes: {self._settings.pending_max_bytes} bytes wait for a confirm")
        self._pending_bytes += len(encoded)
        lanes = self._durable if options.is_durable else self._direct
        waiting = _Waiting(channel, options, encoded, settled, time.monotonic())
        lanes[shard_of(channel, len(lanes))].add(waiting)

    async def run(self) -> None:
        """Serve the lanes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for lane in (*self._durable, *self._direct):
                tasks.create_task(lane.run(self._metrics, self._release))

    async def drained(self) -> None:
        """Wait until nothing is waiting or under way."""
        for lane in (*self._durable, *self._direct):
            await lane.idle.wait()

    def _release(self, size: int) -> None:
        self._pending_bytes -= size

    def _sender(self, shard: int) -> Callable[[Batch], Awaitable[None]]:
        async def send(batch: Batch) -> None:
            await self._queue.publish(shard, encode_batch(batch))

        return send

    async def _commit(self, batch: Batch) -> None:
        (outcome,) = await self._streams.append([batch])
        if isinstance(outcome, Refused):
            raise outcome
