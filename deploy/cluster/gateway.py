"""A node or a relay of the cluster."""

import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.cluster.environment import ROOT, inherited
from deploy.cluster.http import status_of
from deploy.cluster.ports import HOST
from deploy.cluster.processes import Process


class Gateway(Process):
    """`gateway serve` or `gateway relay` on its own port of 127.0.0.1, which it keeps for life.

    `settings` are environment variables; host and port of the process itself win over them.
    """

    def __init__(
        self, name: str, command: str, *, folder: Path, config: Path, port: int, settings: Mapping[str, str]
    ) -> None:
        self.port = port
        self.ws_url = f"ws://{HOST}:{port}/connection/websocket"
        section = {"serve": "SERVER", "relay": "RELAY"}[command]
        address = {f"GATEWAY_{section}__HOST": HOST, f"GATEWAY_{section}__PORT": str(port)}
        super().__init__(
            name,
            [sys.executable, "-m", "gateway", command, "--config", str(config.resolve())],
            url=f"http://{HOST}:{port}",
            folder=folder,
            env={**inherited(), **settings, **address},
            cwd=ROOT,
        )

    def answers(self) -> bool:
        """Whether it is ready: it has Redis and RabbitMQ and takes clients or batches."""
        return status_of(self.port, "/ready") == 200
