"""A channel's name finds its options; options decide what a client may do."""

import time

import pytest

from broker.envelope import Publication, Retention
from gateway.channels import ChannelOptions, Channels
from gateway.protocol.codes import PERMISSION_DENIED, ReplyError
from gateway.settings import NamespaceSettings

WINDOW = Retention(128, 60.0)
DEFAULT = NamespaceSettings(allow_subscribe_for_client=True)
CHAT = NamespaceSettings(history_size=10, history_ttl=300.0)


def channels(**namespaces: NamespaceSettings) -> Channels:
    """Channels with these namespaces."""
    return Channels(DEFAULT, namespaces, name_max_bytes=255, repair_window=WINDOW)


def found(channel: str, **namespaces: NamespaceSettings) -> ChannelOptions:
    """The options of a channel that exists."""
    options = Channels(DEFAULT, namespaces, name_max_bytes=255, repair_window=WINDOW).find(channel)
    assert isinstance(options, ChannelOptions)
    return options


def options_of(settings: NamespaceSettings) -> ChannelOptions:
    return found("ns:x", ns=settings)


# Names.

NAMES: list[tuple[str, NamespaceSettings]] = [
    ("lobby", DEFAULT),
    ("lobby with spaces", DEFAULT),
    ("ラウンジ😀", DEFAULT),
    ("#42", DEFAULT),
    ("chat:42", CHAT),
    ("chat:", CHAT),
    ("chat:a:b", CHAT),
]


@pytest.mark.parametrize(("name", "settings"), NAMES)
def test_name_finds_its_namespace(name: str, settings: NamespaceSettings) -> None:
    assert found(name, chat=CHAT).settings is settings


BAD_NAMES: list[tuple[str, int]] = [
    ("news:1", 102),
    (":x", 102),
    ("Chat:1", 102),
    (" chat:1", 102),
    ("", 107),
    ("x" * 256, 107),
    ("é" * 128, 107),
    ("chat:" + "x" * 251, 107),
    ("a\nb", 107),
    ("a\x00b", 107),
    ("a\x7fb", 107),
    ("a\u2028b", 107),
]


@pytest.mark.parametrize(("name", "code"), BAD_NAMES)
def test_name_that_finds_nothing_says_why(name: str, code: int) -> None:
    error = channels(chat=CHAT).find(name)
    assert isinstance(error, ReplyError)
    assert error.code == code


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127 + "x"])
def test_longest_name_is_counted_in_bytes(name: str) -> None:
    assert len(name.encode()) == 255
    assert isinstance(channels().find(name), ChannelOptions)


# What is kept.

RETENTIONS: list[tuple[NamespaceSettings, Retention]] = [
    (NamespaceSettings(), WINDOW),
    (NamespaceSettings(history_size=10, history_ttl=300.0), Retention(128, 300.0)),
    (NamespaceSettings(history_size=1000, history_ttl=5.0), Retention(1000, 60.0)),
    (NamespaceSettings(relay="direct"), Retention(0, 0.0)),
    (NamespaceSettings(relay="direct", history_size=10, history_ttl=5.0), Retention(10, 5.0)),
]


@pytest.mark.parametrize(("settings", "retention"), RETENTIONS)
def test_durable_channel_keeps_at_least_the_repair_window(settings: NamespaceSettings, retention: Retention) -> None:
    assert options_of(settings).retention == retention


def test_options_tell_history_and_durability() -> None:
    assert options_of(CHAT).has_history
    assert not options_of(NamespaceSettings()).has_history
    assert options_of(NamespaceSettings()).is_durable
    assert not options_of(NamespaceSettings(relay="direct")).is_durable


def test_history_ends_ttl_after_its_last_publication() -> None:
    options = options_of(CHAT)

    def ago(seconds: float) -> Publication:
        return Publication(b"1", time=int((time.time() - seconds) * 1000))

    assert not options.has_expired([])
    assert not options.has_expired([ago(1000), ago(290)])
    assert options.has_expired([ago(1000), ago(310)])


# Permissions.

SUBSCRIBER = NamespaceSettings(allow_publish_for_subscriber=True, allow_history_for_subscriber=True)
CLIENT = NamespaceSettings(allow_publish_for_client=True, allow_subscribe_for_client=True)
PERMISSIONS: list[tuple[NamespaceSettings, bool, bool, bool, bool]] = [
    # settings, is subscribed, may subscribe, may publish, may read history
    (NamespaceSettings(), False, False, False, False),
    (NamespaceSettings(), True, False, False, False),
    (SUBSCRIBER, False, False, False, False),
    (SUBSCRIBER, True, False, True, True),
    (CLIENT, False, True, True, False),
    (CLIENT, True, True, True, False),
]


@pytest.mark.parametrize(("settings", "is_subscribed", "subscribes", "publishes", "reads"), PERMISSIONS)
def test_permissions(
    settings: NamespaceSettings, is_subscribed: bool, subscribes: bool, publishes: bool, reads: bool
) -> None:
    options = options_of(settings)
    assert options.may_subscribe() == (None if subscribes else PERMISSION_DENIED)
    assert options.may_publish(is_subscribed=is_subscribed) == (None if publishes else PERMISSION_DENIED)
    assert options.may_read_history(is_subscribed=is_subscribed) == (None if reads else PERMISSION_DENIED)
