"""What a followed channel holds back is bounded, and past the bound it knows that something is missing."""

from broker.envelope import CommittedGroup, Publication, Retention
from gateway.channels import ChannelOptions
from gateway.followed import FollowedChannel
from gateway.settings import NamespaceSettings
from tests.unit.doubles import RecordingSubscriber

KEPT = Retention(10, 60.0)


def channel(retention: Retention = KEPT) -> FollowedChannel:
    return FollowedChannel("c", ChannelOptions(NamespaceSettings(), retention))


def group(size: int) -> CommittedGroup:
    return CommittedGroup("c", "e", 1, [Publication(b"x" * size)])


async def test_held_groups_come_back_in_order_once() -> None:
    followed, groups = channel(), [group(10), group(20)]
    for one in groups:
        followed.hold(one, 100)
    assert followed.release() == groups
    assert followed.release() == []
    assert not followed.doubtful


async def test_past_the_bound_groups_are_forgotten_and_the_channel_is_doubtful() -> None:
    followed, first = channel(), group(60)
    followed.hold(first, 100)
    followed.hold(group(60), 100)
    followed.hold(group(1), 100)
    assert followed.doubtful
    assert followed.release() == [first], "a later group must not be held after a hole"


async def test_released_channel_has_room_again() -> None:
    followed = channel()
    followed.hold(group(100), 100)
    followed.release()
    followed.hold(group(100), 100)
    assert not followed.doubtful


async def test_channel_is_vacant_while_nobody_subscribes_or_is_about_to() -> None:
    followed = channel()
    assert followed.is_vacant
    followed.joining = 1
    assert not followed.is_vacant
    followed.joining = 0
    followed.subscribers[RecordingSubscriber()] = None
    assert not followed.is_vacant


async def test_channel_is_kept_when_its_stream_is() -> None:
    assert channel(Retention(1, 1.0)).is_kept
    assert not channel(Retention(0, 0.0)).is_kept
