"""Without URLs the engine lives in this process, and needs no connection to be ready."""

from broker.engine import EngineConfig, open_engine


async def test_engine_without_urls_is_embedded_and_has_no_peers() -> None:
    started: list[object] = []
    async with open_engine(
        EngineConfig(shards=3), role="node", observer=lambda _: None, start=started.append
    ) as engine:
        assert engine.is_embedded
        assert engine.peers() == {}
        assert engine.queue.shards == 3
        (position,) = await engine.streams.positions(["c"])
    assert position.offset == 0
    assert started == [], "a connection keeper without a connection"


async def test_engine_bounds_its_queues() -> None:
    config = EngineConfig(queue_max_bytes=4)
    async with open_engine(config, role="node", observer=lambda _: None, start=lambda _: None) as engine:
        await engine.queue.publish(0, b"1234")
        assert await engine.queue.relays() == 0
