"""The server side of one client connection: commands in, replies out. It knows no transport and does no I/O itself."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

import structlog

from broker.envelope import ClientInfo, Publication
from broker.errors import BrokerError
from broker.ports import Streams
from gateway import __version__
from gateway.auth import Authenticator, ExpiredTokenError, Identity, InvalidTokenError
from gateway.channels import Channels
from gateway.hub import Hub
from gateway.limits import TokenBucket
from gateway.metrics import NodeMetrics
from gateway.outbox import Outbox
from gateway.protocol.codes import (
    BAD_REQUEST,
    CONNECTION_EXPIRED,
    INTERNAL,
    INVALID_TOKEN,
    MALFORMED,
    METHOD_NOT_FOUND,
    NO_PONG,
    NOT_AVAILABLE,
    STALE,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    CommandError,
    Disconnect,
    ProtocolError,
    ReplyError,
)
from gateway.protocol.json import PING, decode_frame, encode, encode_error
from gateway.protocol.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    LaterRequest,
    MalformedRequest,
    PingRequest,
    PingResult,
    Pong,
    PublishRequest,
    PublishResult,
    Reply,
    SendRequest,
    SubscribeRequest,
    UnknownRequest,
    UnsubscribeRequest,
    UnsubscribeResult,
)
from gateway.publisher import Publisher
from gateway.settings import ClientSettings
from gateway.subscriptions import Subscriptions
from gateway.timers import Timer, TimerWheel

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Services:
    """What all sessions of a node share. `clock` gives monotonic seconds."""

    node: str
    hub: Hub
    streams: Streams
    publisher: Publisher
    channels: Channels
    authenticator: Authenticator
    timers: TimerWheel
    metrics: NodeMetrics
    settings: ClientSettings
    clock: Callable[[], float] = field(default=time.monotonic)


class Session:
    """One client: not connected until its `connect` command is accepted, over when its outbox closes."""

    def __init__(self, services: Services, outbox: Outbox) -> None:
        self._services = services
        self._settings = services.settings
        self._metrics = services.metrics
        self._outbox = outbox
        self._identity: Identity | None = None
        self._timers: dict[str, Timer] = {}
        self._bucket = TokenBucket(self._settings.publish_rate_per_second, self._settings.publish_burst, services.clock)
        self._unconfirmed = 0
        self._room = asyncio.Event()  # set while another publication may be taken
        self._room.set()
        self._leaving: Disconnect | None = None
        self._is_busy = False
        self._was_heard = False
        self.client = str(uuid4())
        self.subscriptions = Subscriptions(services.hub, services.streams, services.channels, self._settings, outbox)
        self._after("stale", self._settings.connect_timeout_seconds, partial(self.close, STALE))

    async def receive(self, text: str) -> None:
        """Carry out the commands of one frame. Returns when the next frame may be read; never raises."""
        self._was_heard = True
        self._is_busy = True
        try:
            for command in decode_frame(text):
                if self._outbox.closed is not None:
                    return
                self._metrics.messages_in.inc()
                await self._handle(command)
            await self._room.wait()
        except ProtocolError as error:
            self.close(error.disconnect)
        finally:
            self._is_busy = False
            self._was_heard = True  # while it was busy, its pongs were not read

    def close(self, disconnect: Disconnect) -> None:
        """End the connection from this side."""
        self._outbox.close(disconnect)

    def leave(self, disconnect: Disconnect) -> None:
        """End the connection once its publications under way are answered; nothing more is read from it."""
        self._leaving = disconnect
        self._room.clear()
        if not self._unconfirmed:
            self.close(disconnect)

    def end(self) -> None:
        """Release everything; the connection is over. May be called more than once."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.subscriptions.close()
        self._room.set()

    async def _handle(self, command: Command) -> None:
        request = command.request
        if self._identity is None and not isinstance(request, ConnectRequest | Pong):
            detail = request.detail if isinstance(request, MalformedRequest) else "the first command must be connect"
            raise ProtocolError(MALFORMED.because(detail))
        try:
            await self._carry_out(command.id, request)
        except CommandError as failure:
            self._fail(command.id, request.method, failure.error)
        else:
            if not isinstance(request, PublishRequest):  # counted when it is settled
                self._metrics.commands_ok[request.method].inc()

    async def _carry_out(self, command_id: int, request: object) -> None:
        match request:
            case PublishRequest():
                await self._publish(command_id, request)
            case Pong() | SendRequest():
                pass  # a message to the server has no receiver yet
            case PingRequest():
                self._reply(Reply(command_id, ping=PingResult()))
            case SubscribeRequest():
                subscribed = await self.subscriptions.subscribe(request)
                self._reply(Reply(command_id, subscribe=subscribed))
            case UnsubscribeRequest():
                self.subscriptions.unsubscribe(request.channel)
                self._reply(Reply(command_id, unsubscribe=UnsubscribeResult()))
            case HistoryRequest():
                self._reply(Reply(command_id, history=await self.subscriptions.history(request)))
            case ConnectRequest():
                self._connect(command_id, request)
            case MalformedRequest():
                raise CommandError(BAD_REQUEST.because(request.detail))
            case LaterRequest():
                raise CommandError(NOT_AVAILABLE)
            case UnknownRequest():
                raise CommandError(METHOD_NOT_FOUND)

    def _connect(self, command_id: int, request: ConnectRequest) -> None:
        if self._identity is not None:
            raise ProtocolError(MALFORMED.because("connected already"))
        try:
            identity = self._services.authenticator.authenticate(request.token)
        except ExpiredTokenError:
            raise CommandError(TOKEN_EXPIRED) from None
        except InvalidTokenError as error:
            log.info("token refused", client=self.client, reason=str(error))
            raise ProtocolError(INVALID_TOKEN) from None
        self._identity = identity
        self._timers.pop("stale").cancel()
        interval = self._settings.ping_interval_seconds
        self._after("ping", random.uniform(0, interval), self._ping)  # noqa: S311 - spreads the pings
        if identity.expires:
            self._after("expiry", identity.expires - time.time(), partial(self.close, CONNECTION_EXPIRED))
        result = ConnectResult(
            client=self.client,
            version=f"gateway {__version__}",
            ping=max(1, round(interval)),
            pong=True,
            node=self._services.node,
        )
        self._reply(Reply(command_id, connect=result))

    async def _publish(self, command_id: int, request: PublishRequest) -> None:
        assert self._identity is not None
        await self._room.wait()
        if self._outbox.closed is not None:  # while we waited; nobody would hear of it
            return
        options = self.subscriptions.options_to_publish(request.channel)
        data = bytes(request.data)
        if not data:
            raise CommandError(BAD_REQUEST.because("publish.data is missing"))
        if not self._bucket.take():
            limit = f"client.publish_rate_per_second is {self._settings.publish_rate_per_second:g}"
            raise CommandError(TOO_MANY_REQUESTS.because(limit))
        info = ClientInfo(self._identity.user, self.client, self._identity.info)
        publication = Publication(data, info, time=time.time_ns() // 1_000_000)
        try:
            self._services.publisher.publish(request.channel, options, publication, partial(self._settled, command_id))
        except BrokerError as error:
            log.warning("publication refused", reason=str(error))
            raise CommandError(INTERNAL) from None
        self._unconfirmed += 1
        if self._unconfirmed >= self._settings.unconfirmed_max:
            self._room.clear()

    def _settled(self, command_id: int, error: BrokerError | None) -> None:
        self._unconfirmed -= 1
        if error is None:
            self._metrics.commands_ok[PublishRequest.method].inc()
            self._reply(Reply(command_id, publish=PublishResult()))
        else:
            self._fail(command_id, PublishRequest.method, INTERNAL)
        if self._leaving is None:
            self._room.set()
        elif not self._unconfirmed:
            self.close(self._leaving)

    def _reply(self, reply: Reply) -> None:
        self._outbox.send(encode(reply))

    def _fail(self, command_id: int, method: str, error: ReplyError) -> None:
        self._metrics.command_failed(method, error.code)
        self._outbox.send(encode_error(command_id, error))

    # Pings: a client must be heard between a ping and `pong_timeout_seconds` later.

    def _ping(self) -> None:
        self._was_heard = False
        self._outbox.send(PING)
        self._after("pong", self._settings.pong_timeout_seconds, self._expect_pong)
        self._after("ping", self._settings.ping_interval_seconds, self._ping)

    def _expect_pong(self) -> None:
        if not self._was_heard and not self._is_busy:
            self.close(NO_PONG)

    def _after(self, name: str, seconds: float, callback: Callable[[], None]) -> None:
        self._timers[name] = self._services.timers.after(seconds, callback)
