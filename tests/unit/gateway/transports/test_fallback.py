"""Where a server offers no prepared frames, a SocketWriter sends: the test client, and uvicorn's own protocol class."""

import json
import warnings
from collections.abc import AsyncIterator

import pytest

from gateway.app import create_app
from tests.unit.servers import RunningNode, WireClient, close_of, node_settings, running_node
from tests.unit.waiting import eventually

with warnings.catch_warnings():  # Starlette 1.10 would rather have httpx2
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient
    from starlette.websockets import WebSocketDisconnect


def test_a_client_is_served_by_the_test_client() -> None:
    with (
        TestClient(create_app(node_settings())) as server,
        server.websocket_connect("/connection/websocket") as websocket,
    ):
        websocket.send_text('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"c"}}')
        messages = [json.loads(line) for line in websocket.receive_text().split("\n")]
        if len(messages) == 1:
            messages.append(json.loads(websocket.receive_text()))
        assert [message["id"] for message in messages] == [1, 2]
        websocket.send_text('{"id":3,"publish":{"channel":"c","data":"hello"}}')
        texts = ""
        while "publish" not in texts or "hello" not in texts:
            texts += websocket.receive_text()
        assert '"data":"hello"' in texts


def test_disconnect_reaches_the_test_client() -> None:
    with (
        TestClient(create_app(node_settings())) as server,
        server.websocket_connect("/connection/websocket") as websocket,
    ):
        websocket.send_text("hello")
        with pytest.raises(WebSocketDisconnect) as caught:
            websocket.receive_text()
        assert caught.value.code == 3501


@pytest.fixture
async def node() -> AsyncIterator[RunningNode]:
    async with running_node(node_settings(), has_prepared_frames=False) as node:
        yield node


async def test_publications_reach_subscribers_in_order(node: RunningNode) -> None:
    async with node.client("c") as first, node.client("c") as second:
        for number in range(50):
            await first.ask(publish={"channel": "c", "data": number})
        assert await first.heard(50) == list(range(50))
        assert await second.heard(50) == list(range(50))


async def test_what_is_pending_is_sent_before_the_close(node: RunningNode) -> None:
    async with node.socket() as websocket:
        await websocket.send('{"id":1,"connect":{}}\nnonsense')
        assert "connect" in json.loads(await websocket.recv())
        assert (await close_of(websocket)).code == 3501


async def test_connection_lost_without_a_word_releases_everything(node: RunningNode) -> None:
    async with node.client("c") as client:
        client.websocket.transport.abort()
        await eventually(lambda: node.sessions == 0 and not node.server.server_state.connections)
        await eventually(lambda: not node.server.server_state.tasks)
    assert node.value("gateway_subscriptions") == 0


async def test_client_that_never_reads_is_closed_as_slow_and_others_hear_on() -> None:
    settings = node_settings(client={"outbox_max_bytes": 100_000})
    async with running_node(settings, has_prepared_frames=False) as node:
        async with node.socket(max_queue=1) as websocket, node.client("c") as other:
            stuck = WireClient(websocket)
            await stuck.ask(connect={})
            await stuck.ask(subscribe={"channel": "c"})
            sent = 0
            while node.value("gateway_slow_disconnects_total") == 0:
                await other.ask(publish={"channel": "c", "data": "x" * 60_000})
                sent += 1
                assert sent < 1000
            assert len(await other.heard(sent)) == sent
            assert node.sessions == 1
            websocket.transport.abort()
        await eventually(lambda: not node.server.server_state.connections)
