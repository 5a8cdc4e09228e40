"""The phases of a process, and its background tasks: one that dies makes the process unready, loudly."""

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Phase(Enum):
    """Where a process is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """Phase, peers and faults, and what follows from them. `peers` tells which servers can be used now."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.peers: Callable[[], dict[str, bool]] = dict
        self.failed: str | None = None

    @property
    def accepts(self) -> bool:
        """Whether new client connections are taken."""
        return self.phase is Phase.SERVING and self.failed is None

    @property
    def is_alive(self) -> bool:
        """Whether the process can go on; false calls for a restart."""
        return self.failed is None

    @property
    def is_ready(self) -> bool:
        """Whether the balancer should send clients here."""
        return self.accepts and all(self.peers().values())

    def report(self) -> dict[str, object]:
        """What `/ready` says."""
        return {"ready": self.is_ready, "phase": self.phase.value, "peers": self.peers(), "failed": self.failed}


class Supervisor:
    """Parent of the background tasks. They run until the context ends; none is expected to end before."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._tasks: dict[asyncio.Task[None], Coroutine[Any, Any, None]] = {}

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for work in self._tasks.values():
            work.close()  # a task cancelled before its first turn has not begun it

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this in the background until the end."""
        self._tasks[asyncio.create_task(self._watch(work))] = work

    async def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        name = getattr(work, "__qualname__", repr(work))
        try:
            await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            log.critical("background task cancelled by nobody", task=name)
        except Exception:
            log.critical("background task died", task=name, exc_info=True)
        else:
            log.critical("background task ended", task=name)
        self._lifecycle.failed = name
