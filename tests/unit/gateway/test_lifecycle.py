"""Phases and faults decide what a process says of itself; a background task that dies is heard of."""

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.lifecycle import Lifecycle, Phase, Supervisor
from tests.unit.waiting import eventually

STATES: list[tuple[Phase, dict[str, bool], str | None, bool, bool, bool]] = [
    # phase, peers, failed, accepts, is ready, is alive
    (Phase.STARTING, {}, None, False, False, True),
    (Phase.SERVING, {}, None, True, True, True),
    (Phase.SERVING, {"redis": True, "rabbitmq": True}, None, True, True, True),
    (Phase.SERVING, {"redis": False, "rabbitmq": True}, None, True, False, True),
    (Phase.SERVING, {"redis": True, "rabbitmq": False}, None, True, False, True),
    (Phase.SERVING, {"redis": True}, "Hub.run", False, False, False),
    (Phase.DRAINING, {}, None, False, False, True),
    (Phase.DRAINING, {"redis": True}, "Hub.run", False, False, False),
]


@pytest.mark.parametrize(("phase", "peers", "failed", "accepts", "is_ready", "is_alive"), STATES)
def test_state(
    phase: Phase, peers: dict[str, bool], failed: str | None, accepts: bool, is_ready: bool, is_alive: bool
) -> None:
    lifecycle = Lifecycle()
    lifecycle.phase, lifecycle.peers, lifecycle.failed = phase, lambda: peers, failed
    assert (lifecycle.accepts, lifecycle.is_ready, lifecycle.is_alive) == (accepts, is_ready, is_alive)
    assert lifecycle.report() == {"ready": is_ready, "phase": phase.value, "peers": peers, "failed": failed}


def test_process_starts_as_starting() -> None:
    assert Lifecycle().phase is Phase.STARTING


async def dies() -> None:
    raise ValueError("on purpose")


async def ends() -> None:
    return


async def is_cancelled_by_nobody() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("work", [dies, ends, is_cancelled_by_nobody])
async def test_task_that_stops_makes_the_process_unready_and_not_alive(
    work: Callable[[], Coroutine[Any, Any, None]], capsys: pytest.CaptureFixture[str]
) -> None:
    lifecycle = Lifecycle()
    lifecycle.phase = Phase.SERVING
    async with Supervisor(lifecycle) as supervisor:
        supervisor.start(work())
        await eventually(lambda: lifecycle.failed is not None)
    assert lifecycle.failed == work.__name__
    assert not lifecycle.is_ready
    assert not lifecycle.is_alive
    output = capsys.readouterr()
    assert work.__name__ in output.out + output.err, "nobody heard of it"


async def test_tasks_run_until_the_context_ends_and_end_with_it() -> None:
    lifecycle, started, ended = Lifecycle(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Supervisor(lifecycle) as supervisor:
        supervisor.start(work())
        await started.wait()
        assert not ended.is_set()
    assert ended.is_set()
    assert lifecycle.failed is None, "ending is no failure"


async def test_one_task_that_dies_leaves_the_others_running() -> None:
    lifecycle, ended = Lifecycle(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Supervisor(lifecycle) as supervisor:
        supervisor.start(work())
        supervisor.start(dies())
        await eventually(lambda: lifecycle.failed is not None)
        assert not ended.is_set()


async def fail_before_its_tasks_begin() -> None:
    async with Supervisor(Lifecycle()) as supervisor:
        supervisor.start(dies())
        raise ValueError("on purpose")


def test_context_that_fails_before_its_tasks_began_leaves_nothing_behind() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="on purpose"):
            asyncio.run(fail_before_its_tasks_begin())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
