"""A private RabbitMQ with its own epmd, without a trace elsewhere on the machine."""

import socket
from pathlib import Path

from deploy.cluster.environment import inherited, program
from deploy.cluster.ports import HOST, free_ports
from deploy.cluster.processes import Process, ProcessError

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"  # AMQP 0-9-1, section 4.2.2
_METHOD_FRAME = b"\x01"

_CONFIG = """\
log.console = true
log.console.level = info
log.console.use_colors = off
log.file = false
# A full disk of the developer's machine is no reason to block publishers before it is really full.
disk_free_limit.absolute = 64MB
"""


class RabbitMQ(Process):
    """rabbitmq-server on its own ports of 127.0.0.1, user guest. Its data in `folder` outlives stop, kill and start.

    Erlang nodes find each other through a daemon, epmd, that the first one leaves behind: this broker has one of its
    own, which comes and goes with it.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        amqp_port, distribution_port, epmd_port = free_ports(3)
        self.port = port or amqp_port
        self._data = folder / "rabbitmq"
        env = {
            **inherited(),
            "HOME": str(self._data),  # the Erlang cookie
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": "rabbit@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(self._data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._data),
            "RABBITMQ_CONFIG_FILE": str(self._data / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self._data / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._data / "enabled_plugins"),
            # The script then becomes the broker instead of waiting for it: one process, one id, one exit code.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        url = f"amqp://guest:guest@{HOST}:{self.port}/"
        super().__init__("rabbitmq", [_server_script()], url=url, folder=folder, env=env)
        self._epmd = _Epmd(folder, epmd_port)

    def spawn(self) -> None:
        """Start epmd and the broker."""
        self._data.mkdir(parents=True, exist_ok=True)
        (self._data / "rabbitmq.conf").write_text(_CONFIG)
        (self._data / "rabbitmq-env.conf").touch()  # in place of the machine's own
        (self._data / "enabled_plugins").write_text("[].\n")
        if not self._epmd.is_running:
            self._epmd.start()
        super().spawn()

    def kill(self) -> int:
        """SIGKILL to the broker and to its epmd. Returns the broker's exit code."""
        exit_code = super().kill()
        self._epmd.kill()
        return exit_code

    def answers(self) -> bool:
        """Whether it speaks AMQP."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(_PROTOCOL_HEADER)
                return connection.recv(1) == _METHOD_FRAME  # connection.start
        except OSError:
            return False


class _Epmd(Process):
    """The Erlang port mapper, in the foreground and for one broker alone."""

    def __init__(self, folder: Path, port: int) -> None:
        self._port = port
        command = [program("epmd"), "-port", str(port), "-address", HOST]
        super().__init__("epmd", command, url=f"epmd://{HOST}:{port}", folder=folder, env=inherited())

    def answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self._port), timeout=1):
                return True
        except OSError:
            return False


def _server_script() -> str:
    # Not the `rabbitmq-server` in the path: Debian's insists on being started as root and becoming another user.
    scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not scripts:
        raise ProcessError("rabbitmq-server is not installed; `make test` installs what the cluster needs on Debian")
    return str(scripts[-1])
