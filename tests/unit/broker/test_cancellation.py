"""Telling a cancellation that was asked of this task from one that escaped out of another."""

import asyncio

import pytest

from broker.cancellation import is_cancelled, raise_if_cancelled


async def test_task_that_nobody_cancelled_goes_on() -> None:
    raise_if_cancelled()
    assert not is_cancelled()


async def test_task_is_not_cancelled_by_a_cancellation_that_it_only_sees() -> None:
    other = asyncio.create_task(asyncio.Event().wait())
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    raise_if_cancelled()
    assert not is_cancelled()


async def test_task_that_swallowed_its_cancellation_is_told_of_it() -> None:
    begun, seen = asyncio.Event(), list[bool]()

    async def swallow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(is_cancelled())
        raise_if_cancelled()
        seen.append(False)

    task = asyncio.create_task(swallow())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True]


def test_outside_of_a_loop_there_is_no_task_to_ask() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        is_cancelled()
