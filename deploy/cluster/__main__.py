"""`make cluster`: run a cluster until Ctrl-C or SIGTERM.

From the environment: NODES, RELAYS, PORT, TLS_PORT (TLS only when it is set; see `make certs`), CONFIG, and
GATEWAY_… settings for nodes and relays.
"""

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from deploy.cluster.cluster import DEVELOPMENT, Cluster
from deploy.cluster.environment import ROOT, SETTINGS_PREFIX
from deploy.cluster.ports import free_ports, is_free
from deploy.cluster.probe import NotPermittedError
from deploy.cluster.processes import Process, ProcessError

_FOLDER = ROOT / ".cluster"
_CERTS = ROOT / "deploy" / "certs"
_LOOK_SECONDS = 0.2
_OPEN_FILES = 65_536


class UsageError(Exception):
    """A variable of the environment cannot be used."""


def main() -> int:
    """Run the cluster. Returns the exit code: 0 when it was stopped, 1 when it did not start, 2 for wrong usage."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    _raise_open_files()
    try:
        with _cluster(os.environ) as cluster:
            _announce(cluster)
            _report_deaths(cluster.processes)
    except KeyboardInterrupt:
        return 0
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except ProcessError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Only the first one: the rest must not disturb the stopping, which is bounded.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _raise_open_files() -> None:
    # Nodes and nginx inherit it: the usual 1024 are used up by some 1000 clients. Erlang sizes tables by it: not more.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _cluster(environ: Mapping[str, str]) -> Cluster:
    port = _number(environ, "PORT", 8080) or free_ports(1)[0]
    tls_port = _number(environ, "TLS_PORT", 0)
    config = Path(environ.get("CONFIG") or DEVELOPMENT)
    if not config.is_file():
        raise UsageError(f"CONFIG={config}: no such file")
    for taken in (port, tls_port):
        if taken and not is_free(taken):
            raise UsageError(f"port {taken} is in use; choose another one")
    nodes = _number(environ, "NODES", 3, least=1)
    relays = _number(environ, "RELAYS", 2, least=1)
    folder = _FOLDER / str(port)  # one for each port, because there may be several clusters at a time
    shutil.rmtree(folder, ignore_errors=True)
    return Cluster(
        nodes=nodes,
        relays=relays,
        port=port,
        config=config,
        folder=folder,
        settings={name: value for name, value in environ.items() if name.upper().startswith(SETTINGS_PREFIX)},
        tls=bool(tls_port),
        tls_port=tls_port,
        certs=_CERTS,
    )


def _number(environ: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or not least <= int(text) <= 65_535:
        raise UsageError(f"{name}={text}: not a number from {least} to 65535")
    return int(text)


def _announce(cluster: Cluster) -> None:
    for process in cluster.processes:
        print(f"{process.name:10} {process.url:40} {os.path.relpath(process.log)}")
    print(f"logs are in {os.path.relpath(cluster.folder)}", flush=True)
    try:
        cluster.check()
    except NotPermittedError as error:
        print(f"no trial message: the settings do not permit one ({error}); going by /ready", file=sys.stderr)
        for gateway in (*cluster.relays, *cluster.nodes):
            gateway.wait_answers()
    print(f"ready {cluster.url}", flush=True)


def _report_deaths(processes: Sequence[Process]) -> None:
    """Say which process ended by itself, as long as this program runs. The rest goes on: that is what it is for."""
    running = list(processes)
    while True:
        for process in [process for process in running if not process.is_running]:
            running.remove(process)
            what = f"{process.name} ended with exit code {process.exit_code}"
            print(f"{what}: {os.path.relpath(process.log)}", file=sys.stderr, flush=True)
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
