"""On the event loop that nodes run on: what depends on how a loop reads, writes and closes.

Every other test runs on asyncio's own loop, where a test that fails or hangs leaves no trace in the next one.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from uvicorn.loops.auto import auto_loop_factory

from tests.unit.gateway import test_server
from tests.unit.gateway.transports import test_frames, test_uvicorn, test_websocket
from tests.unit.servers import RunningNode, node_settings, running_node
from tests.unit.waiting import BOUND_SECONDS

WITH_NODE: list[Callable[[RunningNode], Awaitable[None]]] = [
    test_websocket.test_publication_reaches_every_subscriber,
    test_websocket.test_connection_lost_without_a_word_releases_everything,
    test_websocket.test_half_closed_connection_ends,
    test_websocket.test_a_thousand_connections_opened_and_dropped_leave_no_trace,
    test_frames.test_pings_of_a_client_that_does_not_read_are_not_answered_without_bound,
]
ALONE: list[Callable[[], Awaitable[None]]] = [
    test_websocket.test_client_that_never_reads_is_3008_when_it_reads_again_and_others_get_everything,
    test_websocket.test_client_that_never_reads_again_is_cut_off,
    test_uvicorn.test_uvicorn_does_not_read_on_until_the_app_receives,
    test_frames.test_client_that_does_not_answer_a_close_is_cut_off,
    test_server.test_what_clients_published_is_settled_before_the_end,
]


def run(scenario: Awaitable[None]) -> None:
    """Run on the loop that uvicorn chooses: uvloop where it is installed. pytest-timeout cannot end that one.

    Without debug mode, in which uvloop notes a whole stack with every callback.
    """

    async def bounded() -> None:
        async with asyncio.timeout(4 * BOUND_SECONDS):
            await scenario

    with asyncio.Runner(debug=False, loop_factory=auto_loop_factory(use_subprocess=False)) as runner:
        runner.run(bounded())


@pytest.mark.parametrize("scenario", WITH_NODE, ids=lambda scenario: scenario.__name__)
def test_with_a_node(scenario: Callable[[RunningNode], Awaitable[None]]) -> None:
    async def with_node() -> None:
        async with running_node(node_settings()) as node:
            await scenario(node)

    run(with_node())


@pytest.mark.parametrize("scenario", ALONE, ids=lambda scenario: scenario.__name__)
def test_alone(scenario: Callable[[], Awaitable[None]]) -> None:
    run(scenario())


@pytest.mark.parametrize("size", [65_537, 16_000_000])
def test_larger_frame_is_1009(size: int) -> None:
    async def with_node() -> None:
        async with running_node(node_settings()) as node:
            await test_websocket.test_larger_frame_is_1009(node, size)

    run(with_node())
