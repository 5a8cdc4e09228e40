"""The session: every method, every error code, every reason to close; limits, pings, backpressure."""

import asyncio
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator

import pytest

from broker.errors import Refused, Unavailable
from gateway import __version__
from gateway.auth import make_token
from gateway.protocol.codes import SHUTDOWN, SLOW
from gateway.settings import AuthSettings, ClientSettings, NamespaceSettings, PublisherSettings, Settings
from tests.unit.clients import SECRET, Client, Parts, open_parts
from tests.unit.doubles import Json
from tests.unit.waiting import eventually, turns

OPEN = NamespaceSettings(
    history_size=10,
    history_ttl=300.0,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_history_for_subscriber=True,
)
SETTINGS = Settings(
    auth=AuthSettings(allow_anonymous=True, token_hmac_secret=SECRET),
    channels=OPEN,
    namespaces={"closed": NamespaceSettings(), "fast": OPEN.model_copy(update={"relay": "direct"})},
)


def with_client(**values: object) -> Settings:
    """The settings of these tests with other limits of a client."""
    return SETTINGS.model_copy(update={"client": ClientSettings.model_validate(values)})


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


# Connect.


async def test_connect_tells_who_where_and_how_often_it_is_pinged(parts: Parts) -> None:
    client = parts.client()
    reply = await client.connect()
    assert reply == {
        "connect": {
            "client": client.session.client,
            "version": f"gateway {__version__}",
            "ping": 25,
            "pong": True,
            "node": "node",
        }
    }


async def test_every_client_has_an_id_of_its_own(parts: Parts) -> None:
    assert len({parts.client().session.client for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text",
    [
        '{"id":1,"subscribe":{"channel":"c"}}',
        '{"id":1,"publish":{"channel":"c","data":1}}',
        '{"id":1,"ping":{}}',
        '{"id":1,"rpc":{}}',
        '{"id":1,"dance":{}}',
        '{"send":{"data":1}}',
        '{"id":1,"connect":5}',
        '{"id":1,"ping":{}}\n{"id":2,"connect":{}}',
    ],
)
async def test_command_before_connect_is_3501(parts: Parts, text: str) -> None:
    client = parts.client()
    await client.say(text)
    assert client.disconnect is not None
    assert client.disconnect.code == 3501
    assert client.writer.frames == []


async def test_pong_before_connect_is_no_fault(parts: Parts) -> None:
    client = parts.client()
    await client.say("{}")
    assert client.disconnect is None
    assert "connect" in await client.connect()


async def test_second_connect_is_3501(client: Client) -> None:
    await client.say('{"id":9,"connect":{}}')
    assert client.disconnect is not None
    assert (client.disconnect.code, client.disconnect.reason) == (3501, "bad request: connected already")


@pytest.mark.parametrize("text", ["hello", '{"id":1', "[]", '{"ping":{}}', '{"connect":5, nonsense'])
async def test_what_cannot_be_answered_is_3501(client: Client, text: str) -> None:
    await client.say(text)
    assert client.disconnect is not None
    assert client.disconnect.code == 3501


async def test_nothing_after_a_broken_command_is_carried_out(parts: Parts, client: Client) -> None:
    await client.say('{"id":8,"ping":{}}\nnonsense\n{"id":9,"ping":{}}')
    assert client.reply(8) == {"id": 8, "ping": {}}
    assert client.reply(9) is None
    before = parts.value("gateway_messages_in_total")
    await client.say('{"id":10,"publish":{"channel":"c","data":1}}\n{"id":11,"subscribe":{"channel":"c"}}')
    await turns()
    assert parts.queue.bodies == []
    assert parts.value("gateway_channels") == 0
    assert parts.value("gateway_messages_in_total") == before


async def test_client_that_never_connects_is_3502(parts: Parts) -> None:
    client = parts.client()
    parts.pass_time(9.9)
    assert client.disconnect is None
    await client.say("{}")  # talking is not connecting
    parts.pass_time(0.5)
    assert client.disconnect is not None
    assert (client.disconnect.code, client.disconnect.reason) == (3502, "stale")


async def test_client_that_connected_is_never_stale(parts: Parts, client: Client) -> None:
    parts.pass_time(12.0)
    assert client.disconnect is None


async def test_token_names_the_user(parts: Parts) -> None:
    speaker = await parts.connected(make_token(SECRET, "42", info={"name": "n"}))
    listener = await parts.connected()
    await listener.subscribe()
    await speaker.publish("hello")
    await listener.writer.until(lambda _: listener.heard)
    assert listener.pushes[0]["pub"]["info"] == {
        "user": "42",
        "client": speaker.session.client,
        "conn_info": {"name": "n"},
    }


async def test_bad_token_is_3500(parts: Parts) -> None:
    client = parts.client()
    await client.say('{"id":1,"connect":{"token":"forged"}}')
    assert client.disconnect is not None
    assert (client.disconnect.code, client.disconnect.reason) == (3500, "invalid token")
    assert client.writer.frames == []


async def test_missing_token_is_3500_where_one_is_needed() -> None:
    async with open_parts(SETTINGS.model_copy(update={"auth": AuthSettings()})) as parts:
        client = parts.client()
        await client.say('{"id":1,"connect":{}}')
        assert client.disconnect is not None
        assert client.disconnect.code == 3500


async def test_expired_token_is_109_and_the_client_may_try_again(parts: Parts) -> None:
    client = parts.client()
    assert await client.connect(make_token(SECRET, "42", time.time() - 1)) == error(109, "token expired")
    assert client.disconnect is None
    assert "connect" in await client.connect(make_token(SECRET, "42", time.time() + 60))


async def test_client_with_an_expired_token_must_still_connect_in_time(parts: Parts) -> None:
    client = parts.client()
    await client.connect(make_token(SECRET, "42", time.time() - 1))
    parts.pass_time(10.5)
    assert client.disconnect is not None
    assert client.disconnect.code == 3502


async def test_connection_ends_with_its_token_3005(parts: Parts) -> None:
    client = await parts.connected(make_token(SECRET, "42", time.time() + 20))
    parts.pass_time(18.0)
    assert client.disconnect is None
    parts.pass_time(3.0)
    assert client.disconnect is not None
    assert (client.disconnect.code, client.disconnect.reason) == (3005, "connection expired")


# Frames.


async def test_replies_to_one_frame_share_one(client: Client) -> None:
    before = len(client.writer.frames)
    await client.say('{"id":7,"ping":{}}\n{}\n{"id":8,"unsubscribe":{"channel":"c"}}\n{"id":9,"dance":{}}')
    await turns()
    assert len(client.writer.frames) == before + 1
    assert [message["id"] for message in client.writer.messages[-3:]] == [7, 8, 9]


# Small commands.


@pytest.mark.parametrize("method", ["presence", "presence_stats", "rpc", "refresh", "sub_refresh"])
async def test_method_of_later_is_108(client: Client, method: str) -> None:
    assert await client.ask(**{method: {}}) == error(108, "not available")


async def test_unknown_method_is_104(client: Client) -> None:
    assert await client.ask(dance={}) == error(104, "method not found")


async def test_wrong_content_is_107_and_names_the_field(client: Client) -> None:
    reply = await client.ask(subscribe={"channel": 5})
    assert reply["error"]["code"] == 107
    assert "$.subscribe.channel" in reply["error"]["message"]
    assert client.disconnect is None


async def test_ping_is_answered(client: Client) -> None:
    assert await client.ask(ping={}) == {"ping": {}}


async def test_send_gets_no_reply(client: Client) -> None:
    before = client.writer.messages
    await client.say('{"send":{"data":{"a":1}}}')
    await client.say('{"id":9,"send":{"data":1}}')
    await turns()
    assert client.writer.messages == before
    assert client.disconnect is None


async def test_commands_are_counted_by_method_and_result(parts: Parts, client: Client) -> None:
    await client.ask(ping={})
    await client.subscribe()
    await client.publish(1)
    await client.publish(2, channel="closed:x")
    await client.ask(dance={})
    await client.say('{"send":{}}')

    def counted(method: str, result: str) -> float:
        return parts.value("gateway_commands_total", method=method, result=result)

    assert [counted("connect", "ok"), counted("ping", "ok"), counted("subscribe", "ok"), counted("send", "ok")] == [
        1, 1, 1, 1,
    ]  # fmt: skip
    assert (counted("publish", "ok"), counted("publish", "103"), counted("unknown", "104")) == (1, 1, 1)
    assert parts.value("gateway_messages_in_total") == 7


# Publish.


async def test_publication_is_answered_when_it_is_confirmed_and_not_before(parts: Parts, client: Client) -> None:
    parts.queue.gate.shut()
    await client.say('{"id":9,"publish":{"channel":"c","data":1}}')
    await parts.queue.until_handed_in(1)
    await turns()
    assert client.reply(9) is None
    parts.queue.gate.open()
    await client.writer.until(lambda _: client.reply(9))
    assert client.reply(9) == {"id": 9, "publish": {}}


@pytest.mark.parametrize("data", ['{"a" : [1, 2]}', '"\\u0041"', "1.0", "null", '"<b>é😀</b>"'])
async def test_subscribers_get_the_bytes_that_were_published(parts: Parts, client: Client, data: str) -> None:
    await client.subscribe()
    await client.say(f'{{"id":9,"publish":{{"channel":"c","data":{data}}}}}')
    await client.writer.until(lambda _: client.heard)
    (payload,) = [payload for payload in client.writer.payloads if b'"push"' in payload]
    assert f'"data":{data},'.encode() in payload


async def test_publications_of_a_connection_keep_their_order(parts: Parts, client: Client) -> None:
    listener = await parts.connected()
    await listener.subscribe()
    for start in range(0, 200, 50):
        commands = [{"id": 1000 + n, "publish": {"channel": "c", "data": n}} for n in range(start, start + 50)]
        await client.say("\n".join(json.dumps(command) for command in commands))
    await listener.writer.until(lambda _: len(listener.heard) == 200)
    assert listener.heard == list(range(200))
    assert [push["pub"]["offset"] for push in listener.pushes] == list(range(1, 201))


async def test_direct_publication_is_committed_without_rabbitmq(parts: Parts, client: Client) -> None:
    await client.subscribe("fast:x")
    assert await client.publish(1, channel="fast:x") == {"publish": {}}
    await client.writer.until(lambda _: client.heard)
    assert parts.queue.bodies == []


async def test_publishing_where_clients_may_not_is_103(parts: Parts, client: Client) -> None:
    assert await client.publish(1, channel="closed:x") == error(103, "permission denied")
    await turns()
    assert parts.queue.bodies == []


async def test_publishing_as_a_subscriber_needs_a_subscription() -> None:
    namespace = NamespaceSettings(allow_subscribe_for_client=True, allow_publish_for_subscriber=True)
    async with open_parts(SETTINGS.model_copy(update={"channels": namespace})) as parts:
        client = await parts.connected()
        assert await client.publish(1) == error(103, "permission denied")
        await client.subscribe()
        assert await client.publish(1) == {"publish": {}}
        await client.ask(unsubscribe={"channel": "c"})
        assert await client.publish(1) == error(103, "permission denied")


async def test_publishing_nothing_is_107(client: Client) -> None:
    assert await client.ask(publish={"channel": "c"}) == error(107, "bad request: publish.data is missing")


async def test_publishing_in_an_unknown_namespace_is_102(client: Client) -> None:
    assert await client.publish(1, channel="unknown:x") == error(102, "unknown channel")


async def test_publication_not_stored_is_a_temporary_error(parts: Parts, client: Client) -> None:
    parts.queue.failures.append(Refused("full"))
    assert await client.publish(1) == error(100, "internal server error", temporary=True)
    assert await client.publish(2) == {"publish": {}}
    assert parts.value("gateway_commands_total", method="publish", result="100") == 1


async def test_publication_of_unknown_outcome_is_a_temporary_error() -> None:
    settings = SETTINGS.model_copy(update={"publisher": PublisherSettings(timeout_seconds=0.001)})
    async with open_parts(settings) as parts:
        parts.queue.failures.append(Unavailable("away"))
        client = await parts.connected()
        assert await client.publish(1) == error(100, "internal server error", temporary=True)


async def test_publication_that_finds_the_publisher_full_is_a_temporary_error() -> None:
    settings = with_client(frame_max_bytes=16_777_216).model_copy(
        update={"publisher": PublisherSettings(pending_max_bytes=1_048_576)}
    )
    async with open_parts(settings) as parts:
        client = await parts.connected()
        parts.queue.gate.shut()
        await client.say(json.dumps({"id": 8, "publish": {"channel": "c", "data": "x" * 1_000_000}}))
        assert await client.publish("x" * 100_000) == error(100, "internal server error", temporary=True)
        parts.queue.gate.open()
        await client.writer.until(lambda _: client.reply(8))


async def test_publishing_too_fast_is_111_until_tokens_come_back() -> None:
    async with open_parts(with_client(publish_rate_per_second=10.0, publish_burst=3)) as parts:
        client = await parts.connected()
        assert [await client.publish(n) for n in range(3)] == [{"publish": {}}] * 3
        refused = error(111, "too many requests: client.publish_rate_per_second is 10", temporary=True)
        assert await client.publish(3) == refused
        assert client.disconnect is None
        parts.clock.advance(0.11)
        assert await client.publish(4) == {"publish": {}}
        assert await client.publish(5) == refused


async def test_rates_of_two_clients_are_their_own() -> None:
    async with open_parts(with_client(publish_rate_per_second=1.0, publish_burst=1)) as parts:
        first, second = await parts.connected(), await parts.connected()
        assert await first.publish(1) == {"publish": {}}
        assert "error" in await first.publish(2)
        assert await second.publish(3) == {"publish": {}}


async def test_client_with_too_much_unconfirmed_is_not_read_until_something_is() -> None:
    async with open_parts(with_client(unconfirmed_max=2)) as parts:
        client = await parts.connected()
        parts.queue.gate.shut()
        await client.say('{"id":11,"publish":{"channel":"c","data":1}}')
        second = asyncio.create_task(client.say('{"id":12,"publish":{"channel":"c","data":2}}'))
        await turns()
        assert not second.done(), "read on past client.unconfirmed_max"
        parts.queue.gate.open()
        await second
        await client.writer.until(lambda _: client.reply(12))


async def test_one_frame_does_not_get_around_the_bound_of_unconfirmed_publications() -> None:
    async with open_parts(with_client(unconfirmed_max=2)) as parts:
        client = await parts.connected()
        parts.queue.gate.shut()
        frame = "\n".join(json.dumps({"id": n, "publish": {"channel": "c", "data": n}}) for n in range(11, 21))
        saying = asyncio.create_task(client.say(frame))
        await parts.queue.until_handed_in(1)
        await turns()
        parts.queue.gate.let_one_pass()
        await parts.queue.until_handed_in(2)
        await turns()
        assert max(len(batch.groups[0].publications) for batch in parts.queue.batches) <= 2
        parts.queue.gate.open()
        await saying
        await client.writer.until(lambda _: client.reply(20))


async def test_waiting_for_confirms_ends_with_the_connection() -> None:
    async with open_parts(with_client(unconfirmed_max=1)) as parts:
        client = await parts.connected()
        parts.queue.gate.shut()
        saying = asyncio.create_task(client.say('{"id":11,"publish":{"channel":"c","data":1}}'))
        await turns()
        assert not saying.done()
        client.session.close(SHUTDOWN)
        await saying
        parts.queue.gate.open()
        await turns()
        assert client.reply(11) is None
        assert client.disconnect is SHUTDOWN


# Pings.


async def test_client_is_pinged_in_its_interval(parts: Parts, client: Client) -> None:
    pings = []
    for _ in range(8):
        parts.pass_time(12.5)
        await client.say("{}")
        await turns()
        pings.append(client.writer.messages.count({}))
    assert pings[1] >= 1, "the first comes within one interval"
    assert pings[-1] in {3, 4, 5}
    assert client.disconnect is None


async def test_first_pings_of_many_clients_are_spread(parts: Parts) -> None:
    clients = [await parts.connected() for _ in range(100)]
    parts.pass_time(12.5)
    await turns()
    pinged = sum({} in client.writer.messages for client in clients)
    assert 20 < pinged < 80


async def pinged(parts: Parts, client: Client) -> None:
    """Move the clock, in small steps, to right after a ping to a client that answers the ones before."""
    before = client.writer.messages.count({})
    while client.writer.messages.count({}) == before:
        await client.say("{}")
        parts.pass_time(0.25)
        await turns(2)


async def test_client_that_is_not_heard_after_a_ping_is_3012(parts: Parts, client: Client) -> None:
    await pinged(parts, client)
    parts.pass_time(7.5)
    assert client.disconnect is None
    parts.pass_time(1.0)
    assert client.disconnect is not None
    assert (client.disconnect.code, client.disconnect.reason) == (3012, "no pong")


@pytest.mark.parametrize("text", ["{}", '{"id":9,"ping":{}}', '{"send":{}}'])
async def test_anything_a_client_says_counts_as_a_pong(parts: Parts, client: Client, text: str) -> None:
    await pinged(parts, client)
    await client.say(text)
    parts.pass_time(8.5)
    assert client.disconnect is None


async def test_client_heard_only_before_the_ping_is_3012(parts: Parts, client: Client) -> None:
    await pinged(parts, client)
    await client.say("{}")
    await pinged(parts, client)
    parts.pass_time(8.5)
    assert client.disconnect is not None
    assert client.disconnect.code == 3012


async def test_client_that_is_not_read_is_not_blamed_for_its_pongs() -> None:
    async with open_parts(with_client(unconfirmed_max=1)) as parts:
        client = await parts.connected()
        await pinged(parts, client)
        parts.queue.gate.shut()
        saying = asyncio.create_task(client.say('{"id":99,"publish":{"channel":"c","data":1}}'))
        await turns()
        for _ in range(40):
            parts.pass_time(1.0)
        assert client.disconnect is None
        parts.queue.gate.open()
        await saying
        assert client.disconnect is None


async def test_client_that_was_not_read_when_it_was_pinged_has_until_it_is_read_again() -> None:
    async with open_parts(with_client(unconfirmed_max=1)) as parts:
        client = await parts.connected()
        parts.queue.gate.shut()
        parts.pass_time(0.25)
        saying = asyncio.create_task(client.say('{"id":99,"publish":{"channel":"c","data":1}}'))
        await parts.queue.until_handed_in(1)
        while {} not in client.writer.messages:  # pinged while it is not read
            parts.pass_time(0.25)
            await turns(2)
        parts.queue.gate.open()
        await saying
        parts.pass_time(8.5)
        assert client.disconnect is None


# Leaving, in a drain.


async def test_client_that_leaves_is_closed_at_once_when_nothing_is_under_way(client: Client) -> None:
    client.session.leave(SHUTDOWN)
    assert client.disconnect is SHUTDOWN


async def test_client_that_leaves_gets_its_answers_first(parts: Parts, client: Client) -> None:
    parts.queue.gate.shut()
    await client.say('{"id":11,"publish":{"channel":"c","data":1}}')
    await parts.queue.until_handed_in(1)
    await client.say('{"id":12,"publish":{"channel":"c","data":2}}')
    client.session.leave(SHUTDOWN)
    assert client.disconnect is None
    parts.queue.gate.let_one_pass()
    await client.writer.until(lambda _: client.reply(11))
    await turns()
    assert client.disconnect is None, "one publication is still under way"
    parts.queue.gate.open()
    await client.writer.until(lambda _: client.disconnect)
    assert client.reply(12) == {"id": 12, "publish": {}}
    assert client.disconnect is SHUTDOWN


async def test_what_a_client_that_leaves_publishes_is_answered_or_not_published(parts: Parts, client: Client) -> None:
    # It would publish again what was not answered, on the next node.
    parts.queue.gate.shut()
    await client.say('{"id":11,"publish":{"channel":"c","data":1}}')
    await parts.queue.until_handed_in(1)
    client.session.leave(SHUTDOWN)
    late = asyncio.create_task(client.say('{"id":12,"publish":{"channel":"c","data":2}}'))
    await turns()
    parts.queue.gate.open()
    await late
    await client.writer.until(lambda _: client.disconnect)
    await turns(50)
    published = [one.data for one in await parts.streams.kept("c")]
    assert published == ([b"1", b"2"] if client.reply(12) else [b"1"])


# The end.


async def test_session_that_ends_leaves_no_trace(parts: Parts) -> None:
    clients = [await parts.connected() for _ in range(5)]
    for number, client in enumerate(clients):
        await client.subscribe("shared")
        await client.subscribe(f"own {number}")
    assert parts.value("gateway_subscriptions") == 10
    for client in clients:
        client.session.close(SHUTDOWN)
        client.session.end()
    assert parts.value("gateway_subscriptions") == 0
    parts.pass_time(2.0)
    await turns()
    assert parts.value("gateway_channels") == 0
    parts.pass_time(100.0)
    assert [client.writer.disconnects for client in clients] == [[SHUTDOWN]] * 5


async def test_timers_let_go_of_a_session_that_ended(parts: Parts) -> None:
    client = await parts.connected(make_token(SECRET, "42", time.time() + 60))
    gone = weakref.ref(client.session)
    client.session.close(SHUTDOWN)
    parts.clients.clear()
    del client
    gc.collect()
    assert gone() is None


async def test_closed_session_hears_nothing_more(parts: Parts, client: Client) -> None:
    await client.subscribe()
    client.session.close(SHUTDOWN)
    await parts.commit(1)
    await turns()
    assert client.heard == []


async def test_session_closed_while_it_subscribes_leaves_no_trace(parts: Parts, client: Client) -> None:
    parts.streams.gate.shut()
    subscribing = asyncio.create_task(client.say('{"id":9,"subscribe":{"channel":"c"}}'))
    await eventually(lambda: parts.streams.gate.waiting == 1)
    client.session.close(SHUTDOWN)
    parts.streams.gate.open()
    await subscribing
    assert parts.value("gateway_subscriptions") == 0
    parts.pass_time(2.0)
    await turns()
    assert parts.value("gateway_channels") == 0


async def test_session_cancelled_while_it_subscribes_leaves_no_trace(parts: Parts, client: Client) -> None:
    parts.streams.gate.shut()
    subscribing = asyncio.create_task(client.say('{"id":9,"subscribe":{"channel":"c"}}'))
    await eventually(lambda: parts.streams.gate.waiting == 1)
    subscribing.cancel()
    await asyncio.gather(subscribing, return_exceptions=True)
    client.outbox.abandon(SHUTDOWN)
    parts.streams.gate.open()
    await turns()
    parts.pass_time(2.0)
    await turns()
    assert parts.value("gateway_subscriptions") == 0
    assert parts.value("gateway_channels") == 0


# Slow clients.


async def test_client_that_does_not_read_is_3008_and_the_others_hear_on(parts: Parts) -> None:
    slow, fast = await parts.connected(), await parts.connected()
    for client in (slow, fast):
        await client.subscribe()
    slow.writer.unread = parts.services.settings.outbox_max_bytes
    await parts.commit(1)
    await parts.commit(2)
    await fast.writer.until(lambda _: len(fast.heard) == 2)
    assert slow.writer.disconnects == [SLOW]
    assert parts.value("gateway_subscriptions") == 1


async def test_client_that_reads_is_not_slow_however_large_a_group_is() -> None:
    # One batch may hold publisher.batch_max_bytes for one channel: as much as a whole outbox by default.
    async with open_parts(with_client(outbox_max_bytes=4096)) as parts:
        client = await parts.connected()
        await client.subscribe()
        await parts.commit(*["x" * 300 for _ in range(20)])
        await turns()
        assert client.disconnect is None
        assert len(client.heard) == 20


async def test_client_that_reads_is_not_slow_however_much_history_it_asks_for() -> None:
    async with open_parts(with_client(outbox_max_bytes=4096)) as parts:
        client = await parts.connected()
        await client.subscribe()
        for _ in range(10):
            await parts.commit("x" * 1000)
            await turns()
        await client.say('{"id":99,"history":{"channel":"c","limit":-1}}')
        await turns()
        assert client.disconnect is None
        reply = client.reply(99)
        assert reply is not None
        assert reply["history"]["publications"]
