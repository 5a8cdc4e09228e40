"""Any run of operations gets the same answers, and the same live publications, from memory and from Redis."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from broker.envelope import Batch, CommittedGroup, Position, Retention
from broker.ports import Page, Streams
from deploy.cluster import Redis

from .brokers import MemoryBrokers, ServerBrokers
from .conftest import unique_prefix
from .support import KEPT, NOT_KEPT, Ear, Sentinel, batch, placed

pytestmark = pytest.mark.servers

T = TypeVar("T")

CHANNELS = ["a", "b", "ns:c#1", "}é"]
RETENTIONS = [KEPT, NOT_KEPT, Retention(1, 600), Retention(3, 600), Retention(0, 600), Retention(5, 0)]

channels = st.sampled_from(CHANNELS)
some_channels = st.lists(channels, min_size=1, max_size=4, unique=True)
offsets = st.none() | st.integers(0, 30)
batches = st.builds(
    lambda sequence, groups, publisher, retention: batch(sequence, groups, publisher=publisher, retention=retention),
    st.integers(1, 12),
    st.dictionaries(channels, st.lists(st.binary(max_size=3), min_size=1, max_size=5), min_size=1),
    st.sampled_from("pq"),
    st.sampled_from(RETENTIONS),
)


class Side:
    """One engine, as the machine drives it."""

    def __init__(self, nodes: list[Streams], lose: Callable[[str], Awaitable[None]]) -> None:
        self.nodes = nodes
        self.lose = lose
        self.ear = Ear()
        nodes[0].follow(self.ear)
        self.sentinel = Sentinel(nodes[0], self.ear)


class Engines(RuleBasedStateMachine):
    """Does everything on both sides, and compares. Epochs are random: equal ones must be equal on the other side."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._epochs: dict[str, str] = {}
        self._memory, self._redis = self._run(self._open(redis_url))

    async def _open(self, redis_url: str) -> tuple[Side, Side]:
        memory = MemoryBrokers()
        servers = ServerBrokers(self._stack, unique_prefix(), redis_url, "", timeout=10)

        return (
            Side([await memory.streams()], memory.lose),
            Side([await servers.streams(), await servers.streams()], servers.lose),
        )

    def teardown(self) -> None:
        try:
            self._run(self._compare_heard())
        finally:
            self._run(self._stack.aclose())
            self._runner.close()

    @rule(appended=st.lists(batches, min_size=1, max_size=3), node=st.integers(0, 1))
    def append(self, appended: list[Batch], node: int) -> None:
        memory, redis = self._both(lambda streams: streams.append(appended), node)
        for one, other in zip(memory, redis, strict=True):
            assert isinstance(one, list)
            assert isinstance(other, list)
            self._same_positions(one, other)

    @rule(channel=channels, since=offsets, limit=st.integers(0, 12), reverse=st.booleans(), node=st.integers(0, 1))
    def read(self, channel: str, since: int | None, limit: int, reverse: bool, node: int) -> None:
        memory, redis = self._both(lambda streams: streams.read(channel, since, limit, reverse=reverse), node)
        self._same_pages(memory, redis)

    @rule(asked=st.lists(channels, max_size=6), node=st.integers(0, 1))
    def positions(self, asked: list[str], node: int) -> None:
        self._same_positions(*self._both(lambda streams: streams.positions(asked), node))

    @rule(names=some_channels)
    def subscribe(self, names: list[str]) -> None:
        self._run(self._compare_heard())
        self._both(lambda streams: streams.subscribe(names))

    @rule(names=some_channels)
    def unsubscribe(self, names: list[str]) -> None:
        self._run(self._compare_heard())
        self._both(lambda streams: streams.unsubscribe(names))

    @rule(channel=channels)
    def lose(self, channel: str) -> None:
        self._both(lambda streams: streams.positions([channel]))  # now there is something to lose
        for side in (self._memory, self._redis):
            self._run(_as_coroutine(side.lose(channel)))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def _both(self, call: Callable[[Streams], Awaitable[T]], node: int = 0) -> tuple[T, T]:
        return self._run(_as_coroutine(call(self._memory.nodes[0]))), self._run(
            _as_coroutine(call(self._redis.nodes[node]))
        )

    async def _compare_heard(self) -> None:
        for side in (self._memory, self._redis):
            await side.sentinel.passed()
        memory, redis = (list(_heard(side.ear)) for side in (self._memory, self._redis))
        assert [event[1:] for event in memory] == [event[1:] for event in redis]
        for one, other in zip(memory, redis, strict=True):
            self._same_epoch(one[0], other[0])

    def _same_pages(self, memory: Page, redis: Page) -> None:
        self._same_positions([memory.end], [redis.end])
        assert placed(memory.publications) == placed(redis.publications)

    def _same_positions(self, memory: list[Position], redis: list[Position]) -> None:
        assert [position.offset for position in memory] == [position.offset for position in redis]
        for one, other in zip(memory, redis, strict=True):
            self._same_epoch(one.epoch, other.epoch)

    def _same_epoch(self, memory: str, redis: str) -> None:
        assert self._epochs.setdefault(memory, redis) == redis
        assert len(set(self._epochs.values())) == len(self._epochs)


def _heard(ear: Ear) -> Iterable[tuple[str, str, int, list[tuple[int, bytes]]]]:
    for event in ear.events:
        assert isinstance(event, CommittedGroup), "suspect for no reason"
        if event.channel != "sentinel":
            yield event.epoch, event.channel, event.offset, placed(event.publications)


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


def test_redis_answers_as_memory_does(redis_server: Redis) -> None:
    run_state_machine_as_test(
        lambda: Engines(redis_server.url),  # type: ignore[arg-type]  # any callable, says its docstring
        settings=settings(
            max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
