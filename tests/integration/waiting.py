"""The one way these tests wait: for a condition, never for time, and never for ever."""

import asyncio
import inspect
import time
from collections.abc import Callable

WITHIN_SECONDS = 20.0
"""Far more than anything takes on an idle machine; only a failure waits this long."""

_POLL_SECONDS = 0.01


async def until(condition: Callable[[], object], what: str, within: float = WITHIN_SECONDS) -> None:
    """Ask again and again until the condition, a function or a coroutine function, is true.

    The pause between two questions only spares the processor: no outcome depends on it. Raises AssertionError, which
    names `what` was awaited and the last answer, after `within` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what} (last answer: {answer!r})")
        await asyncio.sleep(_POLL_SECONDS)
