"""How tests wait: for what they expect, with a bound, and never for an amount of time."""

import asyncio
from collections.abc import Callable

BOUND_SECONDS = 20.0
_POLL_SECONDS = 0.002


async def eventually(condition: Callable[[], bool], what: str = "") -> None:
    """Return as soon as the condition holds; fail when it does not within BOUND_SECONDS.

    For what tells nobody when it changes (the state of a server, of the kernel, of a counter). It looks again after a
    short pause, so it returns right after the change; the bound only decides how long a failure takes.
    """
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            while not condition():  # noqa: ASYNC110 - what is watched has no event
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"never came true within {BOUND_SECONDS:g} s: {what or 'condition'}") from None


async def turns(count: int = 10) -> None:
    """Let the event loop turn: everything that is ready to run runs, nothing is waited for.

    With the memory engine and the doubles here, whatever has been started is finished after a few turns.
    """
    for _ in range(count):
        await asyncio.sleep(0)
