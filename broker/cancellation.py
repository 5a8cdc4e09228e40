"""What the client libraries do to cancellation, undone.

Until Python 3.12 `asyncio.wait_for` may return instead of raising when a task is cancelled at the moment its answer
arrives, and the task goes on for ever. aiormq lets the cancellation of its own tasks escape into ours when it closes.
"""

import asyncio


def raise_if_cancelled() -> None:
    """Raise CancelledError when this task was asked to end."""
    if is_cancelled():
        raise asyncio.CancelledError


def is_cancelled() -> bool:
    """Whether this task was asked to end (and a CancelledError in it is meant for it)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
