"""Sessions without a transport: the parts of a node on the memory engine, and clients that talk to them in JSON."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker.envelope import Batch, Group, Position, Publication, Retention, encode_publication
from broker.relay import Relay
from gateway.auth import Authenticator
from gateway.channels import Channels
from gateway.hub import Hub
from gateway.metrics import NodeMetrics
from gateway.outbox import Flusher, Outbox
from gateway.protocol.codes import Disconnect
from gateway.publisher import Publisher
from gateway.session import Services, Session
from gateway.settings import Settings
from gateway.timers import TimerWheel
from tests.unit.doubles import (
    CommandedQueue,
    CommandedStreams,
    Json,
    RecordingRelayObserver,
    RecordingWriter,
    SettableClock,
)
from tests.unit.waiting import BOUND_SECONDS

KEPT = Retention(128, 300.0)
SECRET = "a secret of at least 32 bytes, as RFC 7518 wants it"


class Client:
    """One client: its session, and everything that was written to it."""

    def __init__(self, services: Services, flusher: Flusher) -> None:
        self.writer = RecordingWriter()
        self.outbox = Outbox(self.writer, flusher, services.settings.outbox_max_bytes)
        self.session = Session(services, self.outbox)
        self.outbox.on_close = lambda _: self.session.end()
        self._last_id = 0

    async def say(self, text: str) -> None:
        """Send a frame as it is, and return when the session would read the next."""
        async with asyncio.timeout(BOUND_SECONDS):
            await self.session.receive(text)

    async def ask(self, **command: object) -> Json:
        """Send one command and return its reply, without the id."""
        self._last_id += 1
        number = self._last_id
        await self.say(json.dumps({"id": number, **command}))
        await self.writer.until(lambda writer: self.reply(number) is not None)
        reply = self.reply(number)
        assert reply is not None
        return {key: value for key, value in reply.items() if key != "id"}

    def reply(self, number: int) -> Json | None:
        """The reply to the command with this id, if it is there; there must not be two."""
        replies = [message for message in self.writer.messages if message.get("id") == number]
        assert len(replies) < 2
        return replies[0] if replies else None

    async def connect(self, token: str = "") -> Json:
        return await self.ask(connect={"token": token} if token else {})

    async def subscribe(self, channel: str = "c", **request: object) -> Json:
        return await self.ask(subscribe={"channel": channel, **request})

    async def publish(self, data: object, channel: str = "c") -> Json:
        return await self.ask(publish={"channel": channel, "data": data})

    async def history(self, channel: str = "c", **request: object) -> Json:
        return await self.ask(history={"channel": channel, **request})

    @property
    def pushes(self) -> list[Json]:
        return [message["push"] for message in self.writer.messages if "push" in message]

    @property
    def heard(self) -> list[object]:
        """The data of every publication pushed."""
        return [push["pub"]["data"] for push in self.pushes if "pub" in push]

    @property
    def disconnect(self) -> Disconnect | None:
        """Why the server closed the connection, if it did."""
        return self.writer.disconnects[0] if self.writer.disconnects else None


@dataclass
class Parts:
    """The parts of a node. `clock` drives timers and rates, and stands still until a test moves it."""

    services: Services
    streams: CommandedStreams
    queue: CommandedQueue
    clock: SettableClock
    flusher: Flusher
    sequence: int = 0
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        """A client that has not connected yet."""
        client = Client(self.services, self.flusher)
        self.clients.append(client)
        return client

    async def connected(self, token: str = "") -> Client:
        """A client that has connected."""
        client = self.client()
        assert "connect" in await client.connect(token)
        return client

    async def commit(
        self, *data: object, channel: str = "c", age: float = 0.0, retention: Retention = KEPT
    ) -> Position:
        """Commit publications taken `age` seconds ago, as another node's; return where the stream ends."""
        self.sequence += 1
        taken = int((time.time() - age) * 1000)
        encoded = [encode_publication(Publication(json.dumps(one).encode(), time=taken)) for one in data]
        await self.streams.commit(Batch("another node", self.sequence, [Group(channel, retention, encoded)]))
        return await self.streams.end(channel)

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and call the timers that are due."""
        self.clock.advance(seconds)
        self.services.timers.turn()

    def value(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        return self.services.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """The parts of a node with these settings, working until the context ends."""
    clock, metrics, streams, queue = SettableClock(), NodeMetrics(), CommandedStreams(), CommandedQueue()
    timers = TimerWheel(clock)
    hub = Hub(streams, timers, settings.hub, metrics, recovery_max_bytes=settings.client.outbox_max_bytes // 2)
    publisher = Publisher("node", queue, streams, settings.publisher, metrics)
    services = Services(
        node="node",
        hub=hub,
        streams=streams,
        publisher=publisher,
        channels=Channels(
            settings.channels,
            settings.namespaces,
            name_max_bytes=settings.client.channel_name_max_bytes,
            repair_window=Retention(settings.hub.repair_window_publications, settings.hub.repair_window_seconds),
        ),
        authenticator=Authenticator(
            settings.auth.token_hmac_secret.get_secret_value(),
            allow_anonymous=settings.auth.allow_anonymous,
            token_max_bytes=settings.auth.token_max_bytes,
            clock=time.time,
        ),
        timers=timers,
        metrics=metrics,
        settings=settings.client,
        clock=clock,
    )
    relay = Relay(queue, streams, observer=RecordingRelayObserver(), rebalance_seconds=3600.0)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in (hub.run(), publisher.run(), relay.run())]
        parts = Parts(services, streams, queue, clock, Flusher(metrics.messages_out.inc))
        yield parts
        for client in parts.clients:
            client.session.end()
        streams.gate.open()
        streams.answers.open()
        queue.gate.open()
        for task in running:
            task.cancel()
