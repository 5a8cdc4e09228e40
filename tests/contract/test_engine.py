"""open_engine: the ports as nodes and relays open them."""

import pytest

from broker.engine import EngineConfig, open_engine
from broker.envelope import encode_batch, shard_of
from broker.errors import Unavailable
from broker.ports import Streams
from deploy.cluster import RabbitMQ, Redis

from .conftest import unique_prefix
from .relaying import relaying
from .support import batch, eventually, everything, insist, keepers, placed


async def test_without_urls_all_is_embedded() -> None:
    async with (
        keepers() as start,
        open_engine(EngineConfig(shards=3), role="node", observer=print, start=start) as engine,
    ):
        assert engine.is_embedded
        assert engine.peers() == {}
        assert engine.queue.shards == 3
        async with relaying(engine.queue, engine.streams):
            await engine.queue.publish(shard_of("a", 3), encode_batch(batch(1, {"a": [b"1"]})))
            await eventually(lambda: arrived(engine.streams))


@pytest.mark.servers
async def test_a_node_and_a_relay_meet_on_the_servers(redis_server: Redis, rabbitmq_server: RabbitMQ) -> None:
    config = EngineConfig(redis_server.url, rabbitmq_server.url, unique_prefix(), shards=1)
    async with (
        keepers() as start,
        open_engine(config, role="node", observer=print, start=start) as node,
        open_engine(config, role="relay", observer=print, start=start) as relay,
    ):
        assert not node.is_embedded
        assert not relay.is_embedded
        assert node.peers() == {"redis": False, "rabbitmq": False}  # opened, but not yet connected
        with pytest.raises(Unavailable):
            await node.streams.subscribe(["a"])
        async with relaying(relay.queue, relay.streams):
            await insist(lambda: node.queue.publish(0, encode_batch(batch(1, {"a": [b"1"]}))))
            await eventually(lambda: arrived(node.streams))
        for engine in (node, relay):
            await eventually(lambda engine=engine: engine.peers() == {"redis": True, "rabbitmq": True})


async def test_servers_that_are_not_there_are_unavailable() -> None:
    config = EngineConfig("redis://127.0.0.1:1/0", "amqp://127.0.0.1:1/", unique_prefix(), shards=1, timeout=0.2)
    async with (
        keepers() as start,
        open_engine(config, role="node", observer=print, start=start) as node,
        open_engine(config, role="relay", observer=print, start=start) as relay,
    ):
        assert node.peers() == relay.peers() == {"redis": False, "rabbitmq": False}
        with pytest.raises(Unavailable):
            await node.queue.publish(0, b"x")
        with pytest.raises(Unavailable):
            await relay.queue.relays()
        with pytest.raises(Unavailable):
            async with relay.queue.consume(0):
                pass
        with pytest.raises(Unavailable):
            await node.streams.append([batch(1, {"a": [b"1"]})])
        with pytest.raises(Unavailable):
            await node.streams.read("a", None, 1)
        with pytest.raises(Unavailable):
            await node.streams.positions(["a"])
        with pytest.raises(Unavailable):
            await node.streams.subscribe(["a"])
        await node.streams.unsubscribe(["a"])


async def arrived(streams: Streams) -> bool:
    """Whether the one publication is in the stream."""
    return placed((await everything(streams, "a")).publications) == [(1, b"1")]
