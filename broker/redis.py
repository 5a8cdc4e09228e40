"""Streams in Redis: one Lua call commits a group, one pub/sub connection hears them all.

Keys of channel C, in one hash slot: `<prefix>:{cC}:meta` (epoch, offset, last batch of each publisher) and
`<prefix>:{cC}:stream`; pub/sub channel `<prefix>:{cC}`. The `c` keeps the hash tag from being empty.
"""

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

import redis.asyncio as redis_asyncio
import structlog
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from broker.cancellation import raise_if_cancelled
from broker.envelope import Batch, Group, Position, Publication, decode_committed, decode_publication
from broker.errors import Malformed, Refused, Unavailable
from broker.ports import Follower, Observer, Outcome, Page

log = structlog.get_logger(__name__)

_CHANNELS_PER_COMMAND = 500
# AttributeError: redis-py writes to a connection that was closed under it (its writer is None by then).
_ERRORS = (RedisError, OSError, TimeoutError, AttributeError)
# Answers that say "not now" rather than "never": the same call may succeed later.
_TRANSIENT = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
)


_ID_MAX = 2**64 - 1  # of either half of a stream entry's id


class _Script:
    def __init__(self, name: str) -> None:
        self.source = files("broker").joinpath("lua", name).read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class RedisStreams:
    """Streams on one Redis server. Open it with `open_redis_streams`."""

    def __init__(self, pool: redis_asyncio.ConnectionPool, prefix: str, position_ttl: float, timeout: float) -> None:
        self._redis = redis_asyncio.Redis(connection_pool=pool)
        self._prefix = prefix
        self._position_ttl_ms = int(position_ttl * 1000)
        self._commit = _Script("commit.lua")
        self._read = _Script("read.lua")
        self.subscriptions = RedisSubscriptions(prefix, timeout)

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        now = f"{time.time():.6f}"
        calls = [self._commit_call(batch, group, now) for batch in batches for group in batch.groups]
        answers = iter(await self._run(self._commit, calls))
        return [_outcome([next(answers) for _ in batch.groups]) for batch in batches]

    def _commit_call(self, batch: Batch, group: Group, now: str) -> list[Any]:
        meta, stream, topic = self._keys(group.channel)
        retention = group.retention
        size = retention.size if retention.ttl > 0 else 0
        return [
            *(2, meta, stream, secrets.token_hex(4), batch.publisher, batch.sequence),
            *(size, int(retention.ttl * 1000), self._position_ttl_ms, topic, now, *group.publications),
        ]

    async def read(self, channel: str, since: int | None, limit: int, *, reverse: bool = False) -> Page:
        start, end = "-", "+"
        if since is not None and reverse:
            end = str(min(since - 1, _ID_MAX))
            limit = limit if since > 1 else 0
        elif since is not None:
            start = str(min(since + 1, _ID_MAX))
            limit = limit if since < _ID_MAX else 0
        call = self._read_call(channel, limit, start, end, reverse)
        (answer,) = await self._run(self._read, [call])
        if isinstance(answer, ResponseError):
            raise Unavailable(f"redis: {answer}")
        epoch, offset, entries = answer
        return Page(Position(epoch.decode(), offset), _decode_entries(entries))

    async def positions(self, channels: Sequence[str]) -> list[Position]:
        answers = await self._run(self._read, [self._read_call(channel, 0, "-", "+", False) for channel in channels])
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise Unavailable(f"redis: {answer}")
        return [Position(epoch.decode(), offset) for epoch, offset, _ in answers]

    def _read_call(self, channel: str, limit: int, start: str, end: str, reverse: bool) -> list[Any]:
        meta, stream, _ = self._keys(channel)
        return [2, meta, stream, secrets.token_hex(4), self._position_ttl_ms, limit, start, end, int(reverse)]

    async def subscribe(self, channels: Collection[str]) -> None:
        await self.subscriptions.add(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        await self.subscriptions.remove(channels)

    def follow(self, follower: Follower) -> None:
        self.subscriptions.follower = follower

    def _keys(self, channel: str) -> tuple[str, str, str]:
        topic = f"{self._prefix}:{{c{channel}}}"
        return f"{topic}:meta", f"{topic}:stream", topic

    async def _run(self, script: _Script, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Run a script once per call, in one round trip; errors of a single call are among the answers."""
        try:
            answers = await self._pipeline("EVALSHA", script.sha, calls)
            if any(isinstance(answer, NoScriptError) for answer in answers):  # a new server: all again, it is safe
                answers = await self._pipeline("EVAL", script.source, calls)
        except _ERRORS as error:
            raise Unavailable(f"redis: {error}") from error
        finally:
            raise_if_cancelled()
        for answer in answers:
            if isinstance(answer, RedisError) and not _is_final(answer):
                raise Unavailable(f"redis: {answer}")
        return answers

    async def _pipeline(self, command: str, script: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        # One transaction: if a call could fail and a later one succeed (scripts or memory come back in between), the
        # commit would take the repetition of the first for one it has passed, and an acknowledged batch were lost.
        async with self._redis.pipeline(transaction=True) as pipeline:
            for call in calls:
                pipeline.execute_command(command, script, *call)
            return await pipeline.execute(raise_on_error=False)


def _is_final(error: RedisError) -> bool:
    """Whether the answer is "never". redis-py has classes of their own for many that say "not now"."""
    return type(error) is ResponseError and not str(error).startswith(_TRANSIENT)


def _decode_entries(entries: Iterable[Any]) -> list[Publication]:
    publications = []
    for entry_id, fields in entries:
        try:
            publications.append(decode_publication(fields[1], int(entry_id.split(b"-")[0])))
        except (Malformed, ValueError, IndexError) as error:  # left out: whoever compares offsets sees the hole
            log.error("undecodable entry in redis stream", entry=entry_id.decode(errors="replace"), error=str(error))
    return publications


def _outcome(answers: Sequence[Any]) -> Outcome:
    for answer in answers:
        if isinstance(answer, ResponseError):
            return Refused(f"redis: {answer}")
    return [Position(epoch.decode(), offset) for epoch, offset, _ in answers]


class RedisSubscriptions:
    """One pub/sub connection and the channels it must hear; makes all of them suspect whenever it had to reconnect."""

    def __init__(self, prefix: str, timeout: float) -> None:
        self.follower: Follower | None = None
        self.connected = False
        self._timeout = timeout
        self._prefix = f"{prefix}:{{c".encode()
        self._wanted: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._restoring: set[str] = set()
        self._connection: AbstractConnection | None = None

    async def add(self, channels: Collection[str]) -> None:
        if self._connection is None:
            raise Unavailable("redis: pub/sub is not connected")
        loop = asyncio.get_running_loop()
        answers = [self._waiting.setdefault(channel, loop.create_future()) for channel in channels]
        self._wanted.update(channels)
        try:
            async with asyncio.timeout(self._timeout):
                await self._command("SUBSCRIBE", channels)
                await asyncio.gather(*map(asyncio.shield, answers))
        except (*_ERRORS, Unavailable) as error:
            await self.remove(channels)
            raise Unavailable(f"redis: subscribe: {error or 'no answer in time'}") from error

    async def remove(self, channels: Collection[str]) -> None:
        self._wanted.difference_update(channels)
        for channel in channels:
            self._waiting.pop(channel, None)
        if self._connection is not None:
            with suppress(*_ERRORS):  # a connection that breaks here forgets them anyway
                await self._command("UNSUBSCRIBE", channels)

    async def _command(self, name: str, channels: Iterable[str]) -> None:
        names = [b"%s%s}" % (self._prefix, channel.encode()) for channel in channels]
        for start in range(0, len(names), _CHANNELS_PER_COMMAND):
            if self._connection is not None:
                await self._connection.send_command(name, *names[start : start + _CHANNELS_PER_COMMAND])
                raise_if_cancelled()

    async def run(
        self, connect: Callable[[], AbstractConnection], reconnect_max: float, heartbeat: float, observer: Observer
    ) -> None:
        """Keep the connection up for ever: connect, hear, and when it breaks connect again."""
        pause, lost = 0.0, False
        while True:
            connection = connect()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                if lost:
                    observer("redis")
                pause = 0.0
                await self._hear(connection, heartbeat)
            except _ERRORS as error:
                log.warning("redis pub/sub connection lost", error=str(error) or type(error).__name__)
            finally:
                self._lose()
                with suppress(*_ERRORS):
                    await connection.disconnect(nowait=True)
            lost = True
            pause = min(reconnect_max, max(0.05, pause * 2))
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter

    def _lose(self) -> None:
        self._connection, self.connected = None, False
        self._restoring.clear()
        for channel, answer in self._waiting.items():
            self._wanted.discard(channel)
            if not answer.done():
                answer.set_exception(Unavailable("redis: pub/sub connection lost"))
                answer.exception()  # whoever waited may be gone
        self._waiting.clear()

    async def _hear(self, connection: AbstractConnection, heartbeat: float) -> None:
        """Hear until the connection breaks: silent for a heartbeat it is pinged, and must answer within the timeout."""
        self._connection = connection
        self._restoring = set(self._wanted)
        await self._command("SUBSCRIBE", list(self._restoring))
        self.connected = True
        log.info("redis pub/sub connected", channels=len(self._wanted))
        pinged = False
        while True:
            patience = self._timeout if pinged else heartbeat
            message = await connection.read_response(timeout=patience, disconnect_on_error=False)
            raise_if_cancelled()
            if message is None:  # redis-py's word for the timeout
                if pinged:
                    raise TimeoutError("no answer to a ping")
                await connection.send_command("PING", check_health=False)
            elif isinstance(message, list):
                self._take(message)
            pinged = message is None

    def _take(self, message: list[Any]) -> None:
        match message:
            case [b"message", bytes() as topic, bytes() as body]:
                self._receive(self._channel(topic), body)
            case [b"subscribe", bytes() as topic, _]:
                channel = self._channel(topic)
                answer = self._waiting.pop(channel, None)
                if answer and not answer.done():
                    answer.set_result(None)
                if channel in self._restoring:
                    self._restoring.discard(channel)
                    if not self._restoring and self.follower:
                        self.follower.suspect(list(self._wanted))

    def _receive(self, channel: str, body: bytes) -> None:
        if channel not in self._wanted or self.follower is None:
            return
        try:
            group = decode_committed(channel, body)
        except Malformed as error:  # the next group shows the gap
            log.error("undecodable message on redis pub/sub", error=str(error))
        else:
            self.follower.receive(group)

    def _channel(self, topic: bytes) -> str:
        return topic[len(self._prefix) : -1].decode()


@asynccontextmanager
async def open_redis_streams(
    url: str,
    *,
    prefix: str,
    position_ttl: float,
    timeout: float,
    reconnect_max: float,
    connections_max: int,
    heartbeat: float,
    observer: Observer,
    start: Callable[[Coroutine[Any, Any, None]], object],
) -> AsyncIterator[RedisStreams]:
    """Open Streams on the Redis at `url`. `start` runs the connection keeper as a background task."""
    no_retry = Retry(NoBackoff(), 0)  # the commit is idempotent, and the caller decides when to repeat it
    pool = redis_asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        retry=no_retry,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        socket_keepalive=True,
        max_connections=connections_max,
        timeout=timeout,
    )
    streams = RedisStreams(pool, prefix, position_ttl, timeout)
    start(streams.subscriptions.run(pool.make_connection, reconnect_max, heartbeat, observer))
    try:
        yield streams
    finally:
        await pool.disconnect()
