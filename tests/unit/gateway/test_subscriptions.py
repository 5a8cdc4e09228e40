"""Subscriptions and history of one session: what a client may have of a channel, and what it is told."""

from collections.abc import AsyncIterator

import pytest

from gateway.settings import AuthSettings, ClientSettings, NamespaceSettings, Settings
from tests.unit.clients import Client, Parts, open_parts
from tests.unit.doubles import Json
from tests.unit.waiting import turns

HISTORY = NamespaceSettings(
    history_size=5,
    history_ttl=300.0,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_history_for_subscriber=True,
)
SETTINGS = Settings(
    auth=AuthSettings(allow_anonymous=True),
    client=ClientSettings(channels_max=3, history_limit_max=4),
    channels=HISTORY,
    namespaces={
        "forced": HISTORY.model_copy(update={"force_recovery": True}),
        "plain": NamespaceSettings(allow_subscribe_for_client=True, allow_history_for_subscriber=True),
        "secret": HISTORY.model_copy(update={"allow_history_for_subscriber": False}),
        "closed": NamespaceSettings(),
    },
)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    async with open_parts(SETTINGS) as parts:
        yield parts


@pytest.fixture
async def client(parts: Parts) -> Client:
    return await parts.connected()


def error(code: int, message: str, *, temporary: bool = False) -> Json:
    """A reply with this error."""
    return {"error": {"code": code, "message": message} | ({"temporary": True} if temporary else {})}


def data_of(result: Json) -> list[object]:
    """The data of the publications in a result."""
    return [publication["data"] for publication in result.get("publications", [])]


# Subscribe: who may.

REFUSALS = [
    ("closed:x", 103, "permission denied"),
    ("unknown:x", 102, "unknown channel"),
    ("", 107, "bad request: channel must not be empty"),
    ("x" * 256, 107, "bad request: channel is longer than 255 bytes"),
    ("a\nb", 107, "bad request: channel must not hold control characters"),
]


@pytest.mark.parametrize(("channel", "code", "message"), REFUSALS)
async def test_subscribing_where_a_client_may_not_says_why(
    parts: Parts, client: Client, channel: str, code: int, message: str
) -> None:
    assert await client.subscribe(channel) == error(code, message)
    assert parts.value("gateway_channels") == 0
    assert client.disconnect is None


async def test_subscribing_twice_is_105(parts: Parts, client: Client) -> None:
    await client.subscribe()
    assert await client.subscribe() == error(105, "already subscribed")
    await parts.commit(1)
    await client.writer.until(lambda _: client.heard)
    assert client.heard == [1]


async def test_subscribing_past_channels_max_is_106_until_one_is_given_up(client: Client) -> None:
    for number in range(3):
        assert "subscribe" in await client.subscribe(f"{number}")
    assert await client.subscribe("3") == error(106, "limit exceeded: client.channels_max is 3")
    await client.ask(unsubscribe={"channel": "0"})
    assert "subscribe" in await client.subscribe("3")


async def test_refused_subscriptions_do_not_count(client: Client) -> None:
    for _ in range(5):
        assert "error" in await client.subscribe("closed:x")
    assert "subscribe" in await client.subscribe()


async def test_subscribing_without_streams_is_a_temporary_error_and_may_be_repeated(
    parts: Parts, client: Client
) -> None:
    parts.streams.away = True
    assert await client.subscribe() == error(100, "internal server error", temporary=True)
    parts.streams.away = False
    await turns()
    assert "subscribe" in await client.subscribe()


# Subscribe: what it is told.


async def test_channel_without_history_tells_no_position(parts: Parts, client: Client) -> None:
    await parts.commit(1, channel="plain:x")
    for request in ({}, {"recoverable": True, "positioned": True}, {"recover": True, "epoch": "e", "offset": 1}):
        assert await client.subscribe("plain:x", **request) == {"subscribe": {}}
        await client.ask(unsubscribe={"channel": "plain:x"})


async def test_position_is_told_to_who_asks_for_it_or_is_forced_to_have_it(parts: Parts, client: Client) -> None:
    end = await parts.commit(1, 2)
    forced_end = await parts.commit(1, channel="forced:x")
    position = {"epoch": end.epoch, "offset": 2, "positioned": True}

    async def subscribed(channel: str = "c", **request: object) -> Json:
        result: Json = (await client.subscribe(channel, **request))["subscribe"]
        await client.ask(unsubscribe={"channel": channel})
        return result

    assert await subscribed() == {}
    assert await subscribed(positioned=True) == position
    assert await subscribed(recoverable=True) == position | {"recoverable": True}
    assert await subscribed("forced:x") == {
        "recoverable": True, "positioned": True, "epoch": forced_end.epoch, "offset": 1,
    }  # fmt: skip


async def test_position_of_a_channel_never_used_has_an_epoch_and_no_offset(client: Client) -> None:
    result = (await client.subscribe("forced:new"))["subscribe"]
    assert result["epoch"]
    assert "offset" not in result


async def test_what_is_published_after_the_reply_is_pushed_and_nothing_before_it(parts: Parts, client: Client) -> None:
    await parts.commit(1)
    await client.subscribe()
    await parts.commit(2)
    await client.writer.until(lambda _: client.heard)
    assert client.heard == [2]
    kinds = ["push" if "push" in message else "reply" for message in client.writer.messages]
    assert kinds == ["reply", "reply", "push"]


# Recover.


async def test_recovered_publications_lead_on_from_the_position_of_the_client(parts: Parts, client: Client) -> None:
    end = await parts.commit(1, 2, 3)
    result = (await client.subscribe("c", recover=True, epoch=end.epoch, offset=1))["subscribe"]
    assert data_of(result) == [2, 3]
    assert [publication["offset"] for publication in result["publications"]] == [2, 3]
    del result["publications"]
    assert result == {
        "recoverable": True, "positioned": True, "was_recovering": True, "recovered": True,
        "epoch": end.epoch, "offset": 1,
    }  # fmt: skip
    await parts.commit(4)
    await client.writer.until(lambda _: client.heard)
    assert client.heard == [4]


async def test_client_that_missed_nothing_has_recovered(parts: Parts, client: Client) -> None:
    end = await parts.commit(1)
    result = (await client.subscribe("c", recover=True, epoch=end.epoch, offset=1))["subscribe"]
    assert result["recovered"] is True
    assert result["offset"] == 1
    assert data_of(result) == []


async def test_client_that_cannot_recover_is_told_so_and_where_the_channel_stands(parts: Parts, client: Client) -> None:
    end = await parts.commit(*range(9))
    for epoch, offset in (("other", 8), (end.epoch, 1), (end.epoch, 99)):
        result = (await client.subscribe("c", recover=True, epoch=epoch, offset=offset))["subscribe"]
        assert result == {
            "recoverable": True, "positioned": True, "was_recovering": True, "epoch": end.epoch, "offset": 9,
        }  # fmt: skip
        await client.ask(unsubscribe={"channel": "c"})


async def test_flag_2_turns_an_unrecovered_subscription_into_112(parts: Parts, client: Client) -> None:
    end = await parts.commit(1)
    refused = await client.subscribe("c", recover=True, epoch="other", offset=1, flag=2)
    assert refused == error(112, "unrecoverable position")
    assert parts.value("gateway_subscriptions") == 0
    await parts.commit(2)
    await turns()
    assert client.heard == []
    result = await client.subscribe("c", recover=True, epoch=end.epoch, offset=1, flag=2)
    assert data_of(result["subscribe"]) == [2]


async def test_flag_2_means_nothing_to_who_does_not_recover(client: Client) -> None:
    assert "subscribe" in await client.subscribe(flag=2)


# Losing a channel.


async def test_client_is_told_that_a_subscription_ended_and_may_subscribe_again(parts: Parts, client: Client) -> None:
    await client.subscribe()
    parts.streams.forget("c")
    await parts.commit(1)
    await client.writer.until(lambda _: client.pushes)
    assert client.pushes == [{"channel": "c", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}]
    assert "subscribe" in await client.subscribe()
    await parts.commit(2)
    await client.writer.until(lambda _: client.heard)
    assert client.heard == [2]


# Unsubscribe.


async def test_unsubscribed_client_hears_nothing_more(parts: Parts, client: Client) -> None:
    await client.subscribe()
    assert await client.ask(unsubscribe={"channel": "c"}) == {"unsubscribe": {}}
    await parts.commit(1)
    await turns()
    assert client.heard == []
    assert parts.value("gateway_subscriptions") == 0


@pytest.mark.parametrize("channel", ["never subscribed", "unknown:x", ""])
async def test_unsubscribing_from_nothing_is_no_fault(client: Client, channel: str) -> None:
    assert await client.ask(unsubscribe={"channel": channel}) == {"unsubscribe": {}}


# History.

HISTORY_REFUSALS: list[tuple[str, Json, int, str]] = [
    ("c", {}, 103, "permission denied"),
    ("unknown:x", {}, 102, "unknown channel"),
    ("closed:x", {}, 103, "permission denied"),
]


@pytest.mark.parametrize(("channel", "request_", "code", "message"), HISTORY_REFUSALS)
async def test_history_needs_a_subscription(
    client: Client, channel: str, request_: Json, code: int, message: str
) -> None:
    assert await client.history(channel, **request_) == error(code, message)


async def test_history_needs_permission(client: Client) -> None:
    await client.subscribe("secret:x")
    assert await client.history("secret:x") == error(103, "permission denied")


async def test_history_of_a_channel_without_is_108(client: Client) -> None:
    await client.subscribe("plain:x")
    assert await client.history("plain:x") == error(108, "not available")


async def test_history_below_limit_minus_1_is_107(client: Client) -> None:
    await client.subscribe()
    assert await client.history(limit=-2) == error(107, "bad request: history.limit must be -1 or more")


async def test_history_without_streams_is_a_temporary_error(parts: Parts, client: Client) -> None:
    await client.subscribe()
    parts.streams.away = True
    assert await client.history(limit=1) == error(100, "internal server error", temporary=True)


async def test_history_with_limit_0_is_the_position_alone(parts: Parts, client: Client) -> None:
    await client.subscribe()
    end = await parts.commit(1, 2)
    assert await client.history() == {"history": {"epoch": end.epoch, "offset": 2}}


# Committed are 1 … 8, kept for clients (history_size) are 4 … 8, and one reply holds history_limit_max = 4.
PAGES: list[tuple[Json, list[int]]] = [
    ({"limit": -1}, [4, 5, 6, 7]),
    ({"limit": 100}, [4, 5, 6, 7]),
    ({"limit": 2}, [4, 5]),
    ({"limit": 2, "since": {"offset": 5}}, [6, 7]),
    ({"limit": -1, "since": {"offset": 6}}, [7, 8]),
    ({"limit": -1, "since": {"offset": 8}}, []),
    ({"limit": -1, "since": {"offset": 99}}, []),
    ({"limit": 2, "since": {}}, [4, 5]),
    ({"limit": 2, "since": {"offset": 1}}, [4, 5]),
    ({"limit": -1, "reverse": True}, [8, 7, 6, 5]),
    ({"limit": 2, "reverse": True}, [8, 7]),
    ({"limit": 2, "reverse": True, "since": {"offset": 6}}, [5, 4]),
    ({"limit": -1, "reverse": True, "since": {"offset": 6}}, [5, 4]),
    ({"limit": -1, "reverse": True, "since": {"offset": 4}}, []),
    ({"limit": -1, "reverse": True, "since": {"offset": 1}}, []),
    ({"limit": 2, "reverse": True, "since": {"offset": 99}}, [8, 7]),
]


@pytest.mark.parametrize(("request_", "expected"), PAGES)
async def test_history_page(parts: Parts, client: Client, request_: Json, expected: list[int]) -> None:
    await client.subscribe()
    end = await parts.commit(*range(1, 9))
    result = (await client.history(**request_))["history"]
    assert data_of(result) == expected
    assert [publication["offset"] for publication in result.get("publications", [])] == expected
    assert (result["epoch"], result["offset"]) == (end.epoch, 8)


@pytest.mark.parametrize("reverse", [False, True])
async def test_history_page_holds_at_most_half_an_outbox_but_one_publication(reverse: bool) -> None:
    limits = ClientSettings(outbox_max_bytes=4096)
    async with open_parts(SETTINGS.model_copy(update={"client": limits})) as parts:
        client = await parts.connected()
        await client.subscribe()
        for size in (900, 900, 900, 3000, 900):
            await parts.commit("x" * size)
        sizes: list[list[int]] = []
        since = 6 if reverse else 0
        while found := (await client.history(limit=-1, since={"offset": since}, reverse=reverse))["history"].get(
            "publications"
        ):
            sizes.append([len(publication["data"]) for publication in found])
            since = found[-1]["offset"]
        assert sizes == ([[900], [3000], [900, 900], [900]] if reverse else [[900, 900], [900], [3000], [900]])


async def test_history_since_a_position_of_another_epoch_is_112(parts: Parts, client: Client) -> None:
    await client.subscribe()
    end = await parts.commit(1, 2)
    refused = await client.history(limit=-1, since={"offset": 1, "epoch": "other"})
    assert refused == error(112, "unrecoverable position")
    page = await client.history(limit=-1, since={"offset": 1, "epoch": end.epoch})
    assert data_of(page["history"]) == [2]


@pytest.mark.parametrize("reverse", [False, True])
async def test_history_ends_ttl_after_the_last_publication_though_more_is_kept_for_repairs(
    parts: Parts, client: Client, reverse: bool
) -> None:
    await client.subscribe()
    end = await parts.commit(1, 2, age=301.0)
    result = (await client.history(limit=-1, reverse=reverse))["history"]
    assert result == {"epoch": end.epoch, "offset": 2}


OLD_PAGES: list[tuple[Json, list[int]]] = [
    ({"limit": -1}, [1, 2, 3]),
    ({"limit": 1}, [1]),
    ({"limit": 2}, [1, 2]),
    ({"limit": 1, "since": {"offset": 1}}, [2]),
    ({"limit": -1, "reverse": True}, [3, 2, 1]),
    ({"limit": 1, "reverse": True}, [3]),
    ({"limit": 1, "reverse": True, "since": {"offset": 3}}, [2]),
]


@pytest.mark.parametrize(("request_", "expected"), OLD_PAGES)
async def test_history_lasts_while_its_last_publication_does_for_every_page_of_it(
    parts: Parts, client: Client, request_: Json, expected: list[int]
) -> None:
    # As Centrifugo's and as Redis's EXPIRE: each publication prolongs the life of the whole stream.
    await client.subscribe()
    await parts.commit(1, age=400.0)
    await parts.commit(2, age=350.0)
    await parts.commit(3, age=10.0)
    assert data_of((await client.history(**request_))["history"]) == expected
