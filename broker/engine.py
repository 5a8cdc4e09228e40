"""From URLs to opened ports. Without URLs everything lives in this process."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from broker.memory import MemoryRelayQueue, MemoryStreams
from broker.ports import Observer, RelayQueue, Streams
from broker.rabbitmq import Topology, open_rabbit_relay_queue
from broker.redis import open_redis_streams


@dataclass(frozen=True)
class EngineConfig:
    """Where the state lives and how patient to be. Durations are seconds; gateway/settings.py says what each means."""

    redis_url: str = ""
    rabbitmq_url: str = ""
    key_prefix: str = "gateway"
    shards: int = 8
    timeout: float = 3.0
    reconnect_max: float = 2.0
    redis_connections_max: int = 16
    heartbeat: int = 10
    queue_max_bytes: int = 1 << 30
    dead_letters_max_bytes: int = 1 << 28
    position_ttl: float = 30 * 86400.0
    prefetch: int = 64
    delivery_limit: int = 100


@dataclass(frozen=True)
class Engine:
    """The opened ports of one process."""

    streams: Streams
    queue: RelayQueue
    peers: Callable[[], dict[str, bool]]
    """Whether each server behind the ports can be used now, by name."""
    is_embedded: bool
    """Whether the state lives in this process, which then must run its own relay."""


@asynccontextmanager
async def open_engine(
    config: EngineConfig,
    *,
    role: Literal["node", "relay"],
    observer: Observer,
    start: Callable[[Coroutine[Any, Any, None]], object],
) -> AsyncIterator[Engine]:
    """Open the engine that `config` names. `start` runs connection keepers; `observer` hears of reconnections.

    Returns at once, connected or not: `Engine.peers` tells, and calls raise Unavailable until then.
    """
    if not config.redis_url:
        streams = MemoryStreams(config.position_ttl)
        yield Engine(streams, MemoryRelayQueue(config.shards, config.queue_max_bytes), dict, is_embedded=True)
        return
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(
            open_redis_streams(
                config.redis_url,
                prefix=config.key_prefix,
                position_ttl=config.position_ttl,
                timeout=config.timeout,
                reconnect_max=config.reconnect_max,
                connections_max=config.redis_connections_max,
                heartbeat=config.heartbeat,
                observer=observer,
                start=start,
            )
        )
        rabbitmq = await stack.enter_async_context(
            open_rabbit_relay_queue(
                config.rabbitmq_url,
                Topology(
                    config.key_prefix,
                    config.shards,
                    config.queue_max_bytes,
                    config.dead_letters_max_bytes,
                    config.delivery_limit,
                ),
                heartbeat=config.heartbeat,
                timeout=config.timeout,
                prefetch=config.prefetch,
                reconnect_max=config.reconnect_max,
                consumes=role == "relay",
                observer=observer,
                start=start,
            )
        )

        def peers() -> dict[str, bool]:
            link = rabbitmq.consumer if role == "relay" else rabbitmq.publisher
            return {"redis": redis.subscriptions.connected, "rabbitmq": link.opened.is_set() and not link.blocked}

        yield Engine(redis, rabbitmq, peers, is_embedded=False)
