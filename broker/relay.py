"""The worker between RabbitMQ and Redis: consume a shard, commit its batches, acknowledge.

Any number of relays stand in line at every shard; RabbitMQ lets one of them read. A batch is acknowledged after its
commit, and the commit ignores repetitions, so a relay may be killed at any point. While Redis is away a relay holds
what it has and tries again: handing it back would change the order.
"""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from broker.envelope import Batch, decode_batch
from broker.errors import Malformed, Refused, Unavailable
from broker.ports import Consumer, Delivery, RelayQueue, Streams

log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 0.05
_PAUSE_MAX_SECONDS = 1.0


class RelayObserver(Protocol):
    """Told what a relay did, for metrics."""

    def committed(self, batch: Batch, seconds: float) -> None:
        """A batch was committed, so many seconds after its publisher sent it."""

    def dead(self) -> None:
        """A batch went to the dead-letter queue."""


def excess(busy: int, shards: int, relays: int) -> int:
    """Return how many busy shards a relay should hand over when it serves `busy` of `shards` and `relays` exist."""
    return max(0, busy - math.ceil(shards / max(1, relays)))


class Relay:
    """Serves every shard it is let, and hands over what is more than its share."""

    def __init__(
        self, queue: RelayQueue, streams: Streams, *, observer: RelayObserver, rebalance_seconds: float
    ) -> None:
        self._queue = queue
        self._streams = streams
        self._observer = observer
        self._rebalance_seconds = rebalance_seconds
        self._busy: set[int] = set()
        self._leaving: set[int] = set()

    async def run(self) -> None:
        """Relay until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for shard in range(self._queue.shards):
                tasks.create_task(self._serve(shard), name=f"relay shard {shard}")
            tasks.create_task(self._rebalance(), name="relay rebalance")

    async def _serve(self, shard: int) -> None:
        pause = _PAUSE_SECONDS
        while True:
            try:
                async with self._queue.consume(shard) as consumer:
                    self._leaving.discard(shard)
                    while shard not in self._leaving:
                        await self._settle(consumer, await consumer.receive())
                        self._busy.add(shard)
                        pause = _PAUSE_SECONDS
                log.info("shard handed over", shard=shard)
            except Unavailable as error:
                log.debug("shard not served", shard=shard, error=str(error))
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(_PAUSE_MAX_SECONDS, pause * 2)

    async def _settle(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        batches: list[Batch] = []
        tags: list[int] = []
        for delivery in deliveries:
            try:
                batches.append(decode_batch(delivery.body))
                tags.append(delivery.tag)
            except Malformed as error:
                await self._bury(consumer, delivery.tag, error)
        if not batches:
            return
        outcomes = await self._commit(batches)
        now, committed = time.time(), 0
        for batch, tag, outcome in zip(batches, tags, outcomes, strict=True):
            if isinstance(outcome, Refused):
                await self._bury(consumer, tag, outcome)
            else:
                self._observer.committed(batch, now - batch.sent)
                committed = tag
        if committed:
            await consumer.acknowledge(committed)

    async def _bury(self, consumer: Consumer, tag: int, reason: Exception) -> None:
        log.error("batch dead-lettered", reason=str(reason))
        await consumer.reject(tag)
        self._observer.dead()

    async def _commit(self, batches: Sequence[Batch]) -> Sequence[object]:
        pause = _PAUSE_SECONDS
        while True:
            try:
                return await self._streams.append(batches)
            except Unavailable as error:
                log.warning("commit held back", batches=len(batches), error=str(error))
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(_PAUSE_MAX_SECONDS, pause * 2)

    async def _rebalance(self) -> None:
        while True:
            await asyncio.sleep(self._rebalance_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            busy = sorted(self._busy)
            self._busy.clear()
            try:
                surplus = excess(len(busy), self._queue.shards, await self._queue.relays())
            except Unavailable:
                continue
            self._leaving.update(random.sample(busy, surplus))
