"""Channel names and what a client may do with them. Pure decisions over the settings."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.envelope import Publication, Retention
from gateway.protocol.codes import BAD_REQUEST, PERMISSION_DENIED, UNKNOWN_CHANNEL, ReplyError
from gateway.settings import NamespaceSettings

_SEPARATOR = ":"


@dataclass(frozen=True)
class ChannelOptions:
    """What holds for one channel. `retention` is what the stream keeps, which may be more than clients can read."""

    settings: NamespaceSettings
    retention: Retention

    @property
    def has_history(self) -> bool:
        """Whether clients see offsets and can recover."""
        return self.settings.history_size > 0

    @property
    def is_durable(self) -> bool:
        """Whether publications go through RabbitMQ."""
        return self.settings.relay == "durable"

    def has_expired(self, publications: Sequence[Publication]) -> bool:
        """Whether what was read is kept for repairs only: history ends `history_ttl` after the last publication."""
        if not publications:
            return False
        return publications[-1].time / 1000 + self.settings.history_ttl < time.time()

    def may_subscribe(self) -> ReplyError | None:
        """Return why a client may not subscribe; None when it may."""
        return None if self.settings.allow_subscribe_for_client else PERMISSION_DENIED

    def may_publish(self, *, is_subscribed: bool) -> ReplyError | None:
        """Return why a client may not publish; None when it may."""
        if self.settings.allow_publish_for_client:
            return None
        if self.settings.allow_publish_for_subscriber and is_subscribed:
            return None
        return PERMISSION_DENIED

    def may_read_history(self, *, is_subscribed: bool) -> ReplyError | None:
        """Return why a client may not read the stream; None when it may."""
        return None if self.settings.allow_history_for_subscriber and is_subscribed else PERMISSION_DENIED


class Channels:
    """The namespaces of a node: finds the options of a channel by its name."""

    def __init__(
        self,
        default: NamespaceSettings,
        namespaces: Mapping[str, NamespaceSettings],
        *,
        name_max_bytes: int,
        repair_window: Retention,
    ) -> None:
        self._name_max_bytes = name_max_bytes
        self._default = _options(default, repair_window)
        self._namespaces = {name: _options(settings, repair_window) for name, settings in namespaces.items()}

    def find(self, name: str) -> ChannelOptions | ReplyError:
        """Return the options of the channel, or why there is no such channel."""
        size = len(name.encode())
        if size == 0:
            return BAD_REQUEST.because("channel must not be empty")
        if size > self._name_max_bytes:
            return BAD_REQUEST.because(f"channel is longer than {self._name_max_bytes} bytes")
        if not name.isprintable():
            return BAD_REQUEST.because("channel must not hold control characters")
        namespace, separator, _ = name.partition(_SEPARATOR)
        if not separator:
            return self._default
        return self._namespaces.get(namespace, UNKNOWN_CHANNEL)


def _options(settings: NamespaceSettings, repair_window: Retention) -> ChannelOptions:
    """Widen what a durable channel keeps to the repair window: a hub must be able to re-read what it missed."""
    size, ttl = settings.history_size, settings.history_ttl
    if settings.relay == "durable":
        size, ttl = max(size, repair_window.size), max(ttl, repair_window.ttl)
    return ChannelOptions(settings, Retention(size, ttl))
