"""The subscriptions of one session: commands about channels, and what the hub says to this client."""

from broker.envelope import Position, Publication
from broker.errors import BrokerError
from broker.ports import Page, Streams
from gateway.channels import ChannelOptions, Channels
from gateway.hub import Hub, Subscribed
from gateway.outbox import Frame, Outbox
from gateway.protocol.codes import (
    ALREADY_SUBSCRIBED,
    BAD_REQUEST,
    INSUFFICIENT_STATE,
    INTERNAL,
    LIMIT_EXCEEDED,
    NOT_AVAILABLE,
    UNRECOVERABLE_POSITION,
    CommandError,
    ReplyError,
)
from gateway.protocol.json import encode_unsubscribe, publication_message
from gateway.protocol.messages import HistoryRequest, HistoryResult, SubscribeRequest, SubscribeResult
from gateway.settings import ClientSettings

_REJECT_UNRECOVERED = 2  # client.proto, SubscribeRequest.flag: fail with 112 rather than recovered=false


class Subscriptions:
    """A Subscriber of the hub. Methods raise CommandError for what the client did wrong or must try again."""

    def __init__(
        self, hub: Hub, streams: Streams, channels: Channels, settings: ClientSettings, outbox: Outbox
    ) -> None:
        self._hub = hub
        self._streams = streams
        self._channels = channels
        self._settings = settings
        self._outbox = outbox
        self._names: set[str] = set()
        self._closed = False

    def __contains__(self, channel: str) -> bool:
        return channel in self._names

    # As a Subscriber of the hub.

    def deliver(self, frame: Frame) -> None:
        self._outbox.put(frame)

    def lose(self, channel: str) -> None:
        self._names.discard(channel)
        self._outbox.send(encode_unsubscribe(channel, INSUFFICIENT_STATE))

    # Commands.

    async def subscribe(self, request: SubscribeRequest) -> SubscribeResult:
        """Follow a channel, recovering from the position in the request when it asks for that."""
        name = request.channel
        options = self._options(name)
        if name in self._names:
            raise CommandError(ALREADY_SUBSCRIBED)
        if len(self._names) >= self._settings.channels_max:
            raise CommandError(LIMIT_EXCEEDED.because(f"client.channels_max is {self._settings.channels_max}"))
        _require(options.may_subscribe())
        recovers = request.recover and options.has_history
        since = Position(request.epoch, request.offset) if recovers else None
        self._names.add(name)
        try:
            subscribed = await self._hub.subscribe(name, options, self, since)
        except BrokerError:
            self._names.discard(name)
            raise CommandError(INTERNAL) from None
        except BaseException:
            self._names.discard(name)
            raise
        if self._closed:  # the connection ended while we waited
            self._hub.unsubscribe(name, self)
        if request.flag & _REJECT_UNRECOVERED and subscribed.recovery and not subscribed.recovery.recovered:
            self.unsubscribe(name)
            raise CommandError(UNRECOVERABLE_POSITION)
        return _result(request, options, subscribed)

    def unsubscribe(self, channel: str) -> None:
        """Follow a channel no longer; nothing of it is delivered after this."""
        self._names.discard(channel)
        self._hub.unsubscribe(channel, self)

    async def history(self, request: HistoryRequest) -> HistoryResult:
        """Read a part of a channel's stream."""
        options = self._options(request.channel)
        _require(options.may_read_history(is_subscribed=request.channel in self))
        if not options.has_history:
            raise CommandError(NOT_AVAILABLE)
        if request.limit < -1:
            raise CommandError(BAD_REQUEST.because("history.limit must be -1 or more"))
        try:
            page = await self._read(request, options)
        except BrokerError:
            raise CommandError(INTERNAL) from None
        messages = [publication_message(publication, with_offset=True) for publication in page.publications]
        return HistoryResult(messages, page.end.epoch, page.end.offset)

    async def _read(self, request: HistoryRequest, options: ChannelOptions) -> Page:
        newest = await self._streams.read(request.channel, None, 1, reverse=True)
        end, since = newest.end, request.since
        if since is not None and since.epoch not in ("", end.epoch):
            raise CommandError(UNRECOVERABLE_POSITION)
        # More may be kept than clients can read, for repairs: they see the last history_size, for history_ttl.
        if options.has_expired(newest.publications):
            return Page(end, [])
        oldest = max(0, end.offset - options.settings.history_size)
        limit = self._settings.history_limit_max
        limit = limit if request.limit == -1 else min(request.limit, limit)
        if request.reverse:
            start = since.offset if since is not None else None
        else:
            start = max(oldest, since.offset if since is not None else 0)
        page = await self._streams.read(request.channel, start, limit, reverse=request.reverse)
        visible = [publication for publication in page.publications if publication.offset > oldest]
        return Page(page.end, _cut(visible, self._settings.outbox_max_bytes // 2))

    def close(self) -> None:
        """End every subscription."""
        self._closed = True
        for name in self._names:
            self._hub.unsubscribe(name, self)
        self._names.clear()

    def options_to_publish(self, channel: str) -> ChannelOptions:
        """Return the options of a channel that this client may publish in."""
        options = self._options(channel)
        _require(options.may_publish(is_subscribed=channel in self))
        return options

    def _options(self, channel: str) -> ChannelOptions:
        found = self._channels.find(channel)
        if isinstance(found, ReplyError):
            raise CommandError(found)
        return found


def _cut(publications: list[Publication], max_bytes: int) -> list[Publication]:
    """Return as many as fit into a reply, at least one: a reply must not be what makes a client slow."""
    size = 0
    for count, publication in enumerate(publications):
        size += len(publication.data)
        if count and size > max_bytes:
            return publications[:count]
    return publications


def _require(refusal: ReplyError | None) -> None:
    if refusal is not None:
        raise CommandError(refusal)


def _result(request: SubscribeRequest, options: ChannelOptions, subscribed: Subscribed) -> SubscribeResult:
    if not options.has_history:
        return SubscribeResult()
    position, recovery = subscribed.position, subscribed.recovery
    recoverable = options.settings.force_recovery or request.recoverable or request.recover
    result = SubscribeResult(
        recoverable=recoverable,
        positioned=recoverable or request.positioned,
        was_recovering=recovery is not None,
    )
    if result.positioned:
        result.epoch, result.offset = position.epoch, position.offset
    if recovery is not None and recovery.recovered:
        # The client starts from where it was and advances by applying the publications.
        result.recovered, result.offset = True, request.offset
        result.publications = [publication_message(one, with_offset=True) for one in recovery.publications]
    return result
