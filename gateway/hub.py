"""Local fan-out: hears the channels that clients of this node subscribe to, and hands every publication to them, once,
in order, without a hole.

Delivery is synchronous and never waits for a client: a group is encoded once and the same frame goes into every
outbox. What the live connection lost is read from the stream before anything later is delivered.
"""

import asyncio
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from broker.envelope import CommittedGroup, Position, Publication
from broker.errors import Unavailable
from broker.ports import Streams
from gateway.channels import ChannelOptions
from gateway.followed import FollowedChannel, Subscriber
from gateway.metrics import NodeMetrics
from gateway.outbox import Frame
from gateway.protocol.json import encode_publications
from gateway.recovery import LOST, Fault, Recovery, advance, continues, recover
from gateway.settings import HubSettings
from gateway.timers import TimerWheel

log = structlog.get_logger(__name__)

_CHANNELS_AT_ONCE = 500  # opened, or compared with Redis, in one round trip
_PAGE = 256  # publications read at once while repairing
_CATCH_UP_SECONDS = 5.0  # a subscriber that is ahead of this node waits for it at most
_OVERHEAD = 150  # bytes of JSON around the data of a publication, about
_PAUSE_SECONDS = 0.05
_PAUSE_MAX_SECONDS = 1.0


@dataclass(frozen=True)
class Subscribed:
    """Where a new subscriber stands: it gets everything after `position`. `recovery` is what it missed, if it asked."""

    position: Position
    recovery: Recovery | None = None


class Hub:
    """The channels of a node. A Follower of `streams`."""

    def __init__(
        self,
        streams: Streams,
        timers: TimerWheel,
        settings: HubSettings,
        metrics: NodeMetrics,
        *,
        recovery_max_bytes: int,
    ) -> None:
        self._streams = streams
        self._timers = timers
        self._settings = settings
        self._metrics = metrics
        self._recovery_max_bytes = recovery_max_bytes
        self._channels: dict[str, FollowedChannel] = {}
        self._opening: list[FollowedChannel] = []
        self._leaving: list[str] = []
        self._suspects: dict[str, None] = {}
        self._work = asyncio.Event()
        self._doubt = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        metrics.channels.set_function(lambda: len(self._channels))
        streams.follow(self)

    async def run(self) -> None:
        """Serve until cancelled: open and leave channels, repair gaps, compare positions."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._open_and_leave(), name="hub open and leave")
            self._tasks.create_task(self._compare_suspects(), name="hub compare suspects")
            self._tasks.create_task(self._suspect_all(), name="hub suspect all")

    async def subscribe(
        self, name: str, options: ChannelOptions, subscriber: Subscriber, since: Position | None = None
    ) -> Subscribed:
        """Add a subscriber, from now on or, with `since`, from there if nothing of it is lost.

        When this returns, the subscriber gets everything after the position it was told, and nothing before it.
        Raises Unavailable; then it is not subscribed.
        """
        channel = self._channels.get(name) or self._open(name, options)
        channel.joining += 1
        try:
            await asyncio.shield(channel.opened)
            recovery = await self._recover(channel, since) if since is not None else None
            assert channel.position is not None
            channel.subscribers[subscriber] = None
            self._metrics.subscriptions.inc()
            return Subscribed(channel.position, recovery)
        finally:
            channel.joining -= 1
            self._linger(channel)

    def unsubscribe(self, name: str, subscriber: Subscriber) -> None:
        """Remove a subscriber, if it is one. Nothing is delivered to it after this."""
        channel = self._channels.get(name)
        if channel is not None and subscriber in channel.subscribers:
            del channel.subscribers[subscriber]
            self._metrics.subscriptions.dec()
            self._linger(channel)

    def receive(self, group: CommittedGroup) -> None:
        """Take a live group: deliver it, or hold it until what comes before it is there."""
        channel = self._channels.get(group.channel)
        if channel is None:
            return
        if channel.position is None or channel.repair is not None:
            channel.hold(group, self._settings.repair_max_bytes)
        elif self._apply(channel, group):
            self._metrics.delivered(group)

    def suspect(self, channels: Collection[str]) -> None:
        """Compare the positions of these channels soon; publications may have gone by unheard."""
        self._suspects.update(dict.fromkeys(channels))
        self._doubt.set()

    def _apply(self, channel: FollowedChannel, group: CommittedGroup) -> bool:
        assert channel.position is not None
        result = advance(channel.position, group)
        match result:
            case Fault.EPOCH:
                self._lose(channel, Position(group.epoch, group.last_offset))
                return False
            case Fault.GAP if channel.is_kept:
                self._metrics.gaps["found"].inc()
                channel.hold(group, self._settings.repair_max_bytes)
                self._repair(channel)
                return False
            case Fault.GAP:  # nothing is kept of this channel: at most once is all that was promised
                self._metrics.gaps["lost"].inc()
                self._deliver(channel, group.publications)
            case publications if publications:
                self._deliver(channel, publications)
        return True

    def _deliver(self, channel: FollowedChannel, publications: Sequence[Publication]) -> None:
        assert channel.position is not None
        channel.position = Position(channel.position.epoch, publications[-1].offset)
        for tail in channel.tails.values():
            tail.extend(publications)
        if channel.subscribers:
            payload = encode_publications(channel.name, publications, with_offsets=channel.options.has_history)
            frame = Frame(payload, len(publications))
            for subscriber in tuple(channel.subscribers):  # one that is slow leaves while we go
                subscriber.deliver(frame)

    def _lose(self, channel: FollowedChannel, position: Position) -> None:
        """Tell all subscribers that they cannot go on from where they stood; they come back and learn the truth."""
        log.warning("channel lost", publications_before=position.offset)
        self._metrics.gaps["lost"].inc()
        channel.position = position
        subscribers, channel.subscribers = channel.subscribers, {}
        self._metrics.subscriptions.dec(len(subscribers))
        for subscriber in subscribers:
            subscriber.lose(channel.name)
        self._linger(channel)

    # Opening and leaving: one worker, so that what happens to a channel in Redis keeps its order.

    def _open(self, name: str, options: ChannelOptions) -> FollowedChannel:
        channel = self._channels[name] = FollowedChannel(name, options)
        self._opening.append(channel)
        self._work.set()
        return channel

    def _linger(self, channel: FollowedChannel) -> None:
        if channel.is_vacant and self._channels.get(channel.name) is channel:
            self._timers.after(self._settings.linger_seconds, lambda: self._leave(channel))

    def _leave(self, channel: FollowedChannel) -> None:
        if channel.is_vacant and self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
            self._leaving.append(channel.name)
            self._work.set()

    async def _open_and_leave(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._leaving or self._opening:
                if self._leaving:  # first: a channel that was left and is open again must end up subscribed
                    leaving, self._leaving = self._leaving[:_CHANNELS_AT_ONCE], self._leaving[_CHANNELS_AT_ONCE:]
                    await self._streams.unsubscribe(leaving)
                else:
                    opening, self._opening = self._opening[:_CHANNELS_AT_ONCE], self._opening[_CHANNELS_AT_ONCE:]
                    await self._open_all(opening)

    async def _open_all(self, channels: Sequence[FollowedChannel]) -> None:
        names = [channel.name for channel in channels]
        try:
            await self._streams.subscribe(names)
            positions = await self._streams.positions(names)
        except Unavailable as error:
            for channel in channels:
                if self._channels.get(channel.name) is channel:
                    del self._channels[channel.name]
                    self._leaving.append(channel.name)
                channel.opened.set_exception(error)
                channel.opened.exception()  # those who waited may be gone
            return
        for channel, position in zip(channels, positions, strict=True):
            channel.position = position
            self._apply_held(channel)
            channel.opened.set_result(None)

    def _apply_held(self, channel: FollowedChannel) -> None:
        for group in channel.release():
            if channel.repair is not None:
                channel.hold(group, self._settings.repair_max_bytes)
            else:
                self._apply(channel, group)
        if channel.doubtful and channel.repair is None:
            self._repair(channel)

    # Recovery of one subscriber.

    async def _recover(self, channel: FollowedChannel, since: Position) -> Recovery:
        assert channel.position is not None
        if since.epoch != channel.position.epoch:
            return LOST
        if since.offset > channel.position.offset:  # the node that the client comes from was ahead of this one
            await self._catch_up(channel)
        key, tail = object(), list[Publication]()
        channel.tails[key] = tail
        try:
            history = await self._read_missed(channel.name, since.offset, channel.position.offset)
            recovery = recover(
                since,
                history,
                tail,
                channel.position,
                max_publications=min(channel.options.settings.history_size, self._recovery_max_bytes // _OVERHEAD),
                max_bytes=self._recovery_max_bytes,
            )
        finally:
            del channel.tails[key]
        return LOST if channel.options.has_expired(recovery.publications) else recovery

    async def _catch_up(self, channel: FollowedChannel) -> None:
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await asyncio.shield(self._repair(channel))
        except TimeoutError:
            raise Unavailable("the channel could not be read in time") from None

    async def _read_missed(self, name: str, since: int, until: int) -> list[Publication]:
        """Read what follows `since` up to `until`, in pages; stop where it is more than a recovery may hold."""
        missed: list[Publication] = []
        size = 0
        while since < until and size <= self._recovery_max_bytes:
            page = await self._streams.read(name, since, _PAGE)
            if not page.publications:
                break
            missed += page.publications
            size += sum(len(publication.data) + _OVERHEAD for publication in page.publications)
            since = page.publications[-1].offset
        return missed

    # Repair of a whole channel.

    def _repair(self, channel: FollowedChannel) -> asyncio.Task[None]:
        """Read what was missed from the stream; whatever arrives meanwhile is held."""
        if channel.repair is None:
            assert self._tasks is not None
            channel.doubtful = False
            channel.repair = self._tasks.create_task(self._repair_channel(channel))
        else:
            channel.doubtful = True  # the one under way may have read the stream already
        return channel.repair

    async def _repair_channel(self, channel: FollowedChannel) -> None:
        pause = _PAUSE_SECONDS
        while self._channels.get(channel.name) is channel:
            try:
                if await self._read_on(channel):
                    break
            except Unavailable as error:
                log.warning("repair held back", error=str(error))
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(_PAUSE_MAX_SECONDS, pause * 2)
        channel.repair = None
        if self._channels.get(channel.name) is channel:
            self._apply_held(channel)
        else:
            channel.release()  # left meanwhile

    async def _read_on(self, channel: FollowedChannel) -> bool:
        """Deliver the next page after the channel's position; True when it stands at the end of the stream."""
        assert channel.position is not None
        page = await self._streams.read(channel.name, channel.position.offset, _PAGE)
        position = channel.position
        if page.end == position:
            return True
        if page.end.epoch != position.epoch or page.end.offset < position.offset:
            self._lose(channel, page.end)
            return True
        if not channel.is_kept:  # nothing to read; what is still on its way here continues from where we stand
            return True
        if not page.publications or not continues(position, page.publications):
            self._lose(channel, page.end)
            return True
        self._deliver(channel, page.publications)
        self._metrics.gaps["repaired"].inc()
        return channel.position == page.end

    async def _compare_suspects(self) -> None:
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            while self._suspects:
                names = list(islice(self._suspects, _CHANNELS_AT_ONCE))
                for name in names:
                    del self._suspects[name]
                try:
                    positions = await self._streams.positions(names)
                except Unavailable:
                    self._suspects.update(dict.fromkeys(names))
                    await asyncio.sleep(random.uniform(0.5, 1.0) * _PAUSE_MAX_SECONDS)  # noqa: S311 - jitter
                    continue
                for name, position in zip(names, positions, strict=True):
                    channel = self._channels.get(name)
                    if channel is not None and channel.position not in (None, position):
                        self._repair(channel)

    async def _suspect_all(self) -> None:
        while True:
            await asyncio.sleep(self._settings.position_check_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            self.suspect(list(self._channels))
