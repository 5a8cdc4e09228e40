"""The cluster: Redis and RabbitMQ, relays and nodes, nginx in front."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from deploy.cluster.environment import ROOT
from deploy.cluster.gateway import Gateway
from deploy.cluster.nginx import Nginx
from deploy.cluster.ports import HOST, free_ports
from deploy.cluster.probe import publish_and_receive
from deploy.cluster.processes import Process
from deploy.cluster.rabbitmq import RabbitMQ
from deploy.cluster.redis import Redis

DEVELOPMENT = ROOT / "deploy" / "config" / "development.toml"


class Cluster:
    """A whole cluster on free ports of 127.0.0.1, as a context manager that starts and stops it. All methods block.

    `settings` are GATEWAY_… variables for nodes and relays. `port` and `tls_port` are nginx's, 0 takes free ones;
    `tls` makes a self-signed certificate unless `certs` is a folder with tls.crt and tls.key. Data and logs are in
    `folder`; without one they are in a temporary folder that is gone afterwards.
    """

    def __init__(
        self,
        *,
        nodes: int = 3,
        relays: int = 2,
        port: int = 0,
        config: Path = DEVELOPMENT,
        folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        tls: bool = False,
        tls_port: int = 0,
        certs: Path | None = None,
    ) -> None:
        self._is_temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="gateway-cluster-"))).resolve()
        self.redis = Redis(self.folder)
        self.rabbitmq = RabbitMQ(self.folder)
        self.redis_url = self.redis.url
        self.rabbitmq_url = self.rabbitmq.url

        engine = {"GATEWAY_ENGINE__REDIS_URL": self.redis_url, "GATEWAY_ENGINE__RABBITMQ_URL": self.rabbitmq_url}
        self.settings = {**(settings or {}), **engine}
        self.config = config
        free_port, free_tls_port, *ports = free_ports(2 + nodes + relays)
        self.nodes = [self._gateway("serve", f"node-{i}", port) for i, port in enumerate(ports[:nodes], 1)]
        self.relays = [self._gateway("relay", f"relay-{i}", port) for i, port in enumerate(ports[nodes:], 1)]

        self.certs = (certs or self.folder / "certs") if tls else None
        self.nginx = Nginx(
            self.folder,
            port=port or free_port,
            nodes=[node.port for node in self.nodes],
            certs=self.certs,
            tls_port=tls_port or free_tls_port,
        )
        self.url = self.nginx.url
        self.ws_url = f"ws://{HOST}:{self.nginx.port}/connection/websocket"
        self.wss_url = f"wss://{HOST}:{self.nginx.tls_port}/connection/websocket"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def processes(self) -> list[Process]:
        """All processes, in the order they start."""
        return [self.redis, self.rabbitmq, *self.relays, *self.nodes, self.nginx]

    def start(self) -> None:
        """Start everything and wait until it is ready. Raises ProcessError with the log of what is not."""
        if self.certs:
            subprocess.run([ROOT / "deploy" / "certs.sh", self.certs], check=True, stdout=subprocess.DEVNULL)
        _start_together([self.redis, self.rabbitmq])
        _start_together([*self.relays, *self.nodes])
        _start_together([self.nginx])

    def stop(self) -> None:
        """Stop everything that was started, those first that others do not need."""
        for group in ([self.nginx], [*self.nodes], [*self.relays], [self.redis, self.rabbitmq]):
            _stop_together(group)
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, timeout: float = 30.0) -> None:
        """Publish and receive through nginx, with retries for `timeout` seconds.

        Raises ProcessError when it does not work by then, NotPermittedError when the settings forbid it.
        """
        publish_and_receive(self.ws_url, timeout)

    def _gateway(self, command: str, name: str, port: int) -> Gateway:
        return Gateway(name, command, folder=self.folder, config=self.config, port=port, settings=self.settings)


def _start_together(processes: Sequence[Process]) -> None:
    for process in processes:
        process.spawn()
    for process in processes:
        process.wait_answers()


def _stop_together(processes: Sequence[Process]) -> None:
    started = [process for process in processes if process.was_started]
    for process in started:
        process.terminate()
    for process in started:
        process.end()  # a second SIGTERM would skip the drain
