"""One channel that the hub follows: who subscribes to it here, and how far it was heard. State only, no I/O."""

import asyncio
from typing import Protocol

from broker.envelope import CommittedGroup, Position, Publication
from gateway.channels import ChannelOptions
from gateway.outbox import Frame


class Subscriber(Protocol):
    """What the hub needs of a session. Both calls return at once."""

    def deliver(self, frame: Frame) -> None:
        """Take pushes of a channel, to be written soon."""

    def lose(self, channel: str) -> None:
        """Learn that the subscription is over: the channel cannot be followed whole from where it stood."""


class FollowedChannel:
    """Subscribers, position, and what is held back until the position is known or a gap is repaired."""

    __slots__ = (
        "doubtful",
        "held",
        "held_bytes",
        "joining",
        "name",
        "opened",
        "options",
        "position",
        "repair",
        "subscribers",
        "tails",
    )

    def __init__(self, name: str, options: ChannelOptions) -> None:
        self.name = name
        self.options = options
        self.position: Position | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.subscribers: dict[Subscriber, None] = {}
        self.joining = 0
        self.repair: asyncio.Task[None] | None = None
        self.held: list[CommittedGroup] = []
        self.held_bytes = 0
        self.doubtful = False  # whether something may be missing even after the repair under way
        self.tails: dict[object, list[Publication]] = {}

    @property
    def is_vacant(self) -> bool:
        """Whether nobody here subscribes or is about to."""
        return not self.subscribers and not self.joining

    @property
    def is_kept(self) -> bool:
        """Whether Redis keeps a stream from which gaps can be repaired."""
        return self.options.retention.size > 0

    def hold(self, group: CommittedGroup, max_bytes: int) -> None:
        """Keep a group for later; past `max_bytes` forget it, it will have to be read again."""
        self.held_bytes += sum(len(publication.data) for publication in group.publications)
        if self.held_bytes > max_bytes:
            self.doubtful = True
        else:
            self.held.append(group)

    def release(self) -> list[CommittedGroup]:
        """Return what was held."""
        held, self.held, self.held_bytes = self.held, [], 0
        return held
