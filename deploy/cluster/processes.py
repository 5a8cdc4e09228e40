"""One server process: start it, wait until it answers, kill it, freeze it, stop it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

# The kernel sends the death signal when the *thread* that started the process ends (prctl(2), PR_SET_PDEATHSIG).
# Clusters are built in short-lived threads, so one thread that lives as long as this program starts them all.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

_POLL_SECONDS = 0.02
_LOG_TAIL_BYTES = 4096


class ProcessError(RuntimeError):
    """A process did not do what was asked in time; the message holds the end of its log."""


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Return whether the condition came true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


class Process:
    """A server in its own session that logs to a file in `folder` and dies with this program, however that dies.

    Subclasses say when it `answers`. The same object starts the same server again after `stop` or `kill`: same
    command, same ports, same folder. All methods block; a context manager starts and stops it.
    """

    start_timeout = 60.0
    """Seconds from start to the first answer."""
    stop_timeout = 30.0
    """Seconds from SIGTERM to SIGKILL."""
    death_signal = signal.SIGKILL
    """What the process gets when this program is gone."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        url: str,
        folder: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.env = dict(env)
        self.cwd = cwd
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{self.name} pid {self.pid if self._process else None}>"

    @property
    def pid(self) -> int:
        """Process id, also after the process has ended. Raises ProcessError before the first start."""
        return self._started().pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._started().poll()

    @property
    def was_started(self) -> bool:
        """Whether it was ever started."""
        return self._process is not None

    @property
    def is_running(self) -> bool:
        """Whether the process exists (frozen counts)."""
        return self._process is not None and self._process.poll() is None

    def answers(self) -> bool:
        """Whether the server serves; asked until it is true when it starts."""
        return True

    def start(self) -> None:
        """Start the server and wait until it answers. Raises ProcessError with the end of its log if it does not."""
        self.spawn()
        self.wait_answers()

    def spawn(self) -> None:
        """Start the server without waiting for it."""
        if self.is_running:
            raise ProcessError(f"{self.name} runs already")
        self._process = _SPAWNER.submit(self._spawn).result()

    def wait_answers(self, timeout: float | None = None) -> None:
        """Wait until the server answers. Raises ProcessError when it ends instead, or takes too long."""
        timeout = self.start_timeout if timeout is None else timeout
        if not wait_until(lambda: not self.is_running or self.answers(), timeout):
            raise self._error(f"does not answer after {timeout:g} s")
        if not self.is_running:
            raise self._error(f"ended with exit code {self.exit_code} while it was waited for")

    def wait_ended(self, timeout: float) -> int:
        """Wait until the process has ended by itself, and return its exit code. Raises ProcessError after `timeout`."""
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"still runs after {timeout:g} s") from None

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        self._started().terminate()
        self.resume()  # a frozen process hears no SIGTERM

    def stop(self) -> int:
        """SIGTERM, and SIGKILL to what is left after `stop_timeout` seconds. Returns the exit code."""
        self.terminate()
        return self.end()

    def end(self) -> int:
        """Wait for the end after `terminate`, and SIGKILL to what is left after `stop_timeout` seconds."""
        wait_until(lambda: not self.is_running, self.stop_timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to the process and all that it started. Returns the exit code."""
        self._signal_group(signal.SIGKILL)
        return self._started().wait()

    def restart(self) -> None:
        """Stop the server if it runs, and start it again."""
        if self.is_running:
            self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the process and all that it started: connections stay open, nothing answers."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        self._signal_group(signal.SIGCONT)

    def log_tail(self) -> str:
        """The end of what the process has written."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # setpriv(1) sets the death signal and becomes the command; a preexec_fn is not safe beside threads.
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", self.death_signal.name.removeprefix("SIG"), "--", *self._command],
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ProcessError(f"{self.name} was never started")
        return self._process

    def _signal_group(self, number: signal.Signals) -> None:
        # Also after the process itself has ended: what it started may live on in its group.
        with suppress(ProcessLookupError):
            os.killpg(self._started().pid, number)

    def _error(self, what: str) -> ProcessError:
        return ProcessError(f"{self.name} {what}; the end of {self.log}:\n{self.log_tail()}")
