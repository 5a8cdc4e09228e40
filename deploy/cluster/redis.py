"""A private Redis."""

import socket
from pathlib import Path

from deploy.cluster.environment import inherited, program
from deploy.cluster.ports import HOST, free_ports
from deploy.cluster.processes import Process


class Redis(Process):
    """redis-server on its own port of 127.0.0.1. Its append-only file in `folder` outlives stop, kill and start."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        (self.port,) = [port] if port else free_ports(1)
        self._data = folder / "redis"
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self._data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
        }
        command = [program("redis-server"), *(word for name, value in options.items() for word in (f"--{name}", value))]
        url = f"redis://{HOST}:{self.port}/0"
        super().__init__("redis", command, url=url, folder=folder, env=inherited())

    def spawn(self) -> None:
        """Start it in its data folder."""
        self._data.mkdir(parents=True, exist_ok=True)
        super().spawn()

    def answers(self) -> bool:
        """Whether it answers PING: not while it still reads its append-only file."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
