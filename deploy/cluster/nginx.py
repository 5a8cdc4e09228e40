"""nginx in front of the nodes, with the configuration of the compose stack but for the upstream."""

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from string import Template

from deploy.cluster.environment import ROOT, inherited, program
from deploy.cluster.http import status_of
from deploy.cluster.ports import HOST
from deploy.cluster.processes import Process

_SOURCES = ROOT / "deploy" / "nginx"


class Nginx(Process):
    """nginx on `port` of 127.0.0.1, and with TLS on `tls_port` when `certs` is a folder with tls.crt and tls.key."""

    # SIGKILL would end the master alone and leave its workers; at SIGTERM it ends them first.
    death_signal = signal.SIGTERM

    def __init__(
        self, folder: Path, *, port: int, nodes: Sequence[int], certs: Path | None = None, tls_port: int = 0
    ) -> None:
        self.port = port
        self.tls_port = tls_port
        self._prefix = folder / "nginx"
        self._nodes = nodes
        self._certs = certs
        main = f'daemon off; pid "{self._prefix}/nginx.pid";'
        paths = ["-p", str(self._prefix), "-c", str(self._prefix / "nginx.conf"), "-e", "stderr"]
        command = [program("nginx"), *paths, "-g", main]
        super().__init__("nginx", command, url=f"http://{HOST}:{port}", folder=folder, env=inherited())

    def spawn(self) -> None:
        """Write the configuration and start."""
        (self._prefix / "temp").mkdir(parents=True, exist_ok=True)
        (self._prefix / "conf.d").mkdir(exist_ok=True)
        for name in ("nginx.conf", "proxy.conf"):
            shutil.copyfile(_SOURCES / name, self._prefix / name)
        servers = "\n".join(f"    server {HOST}:{port} max_fails=0;" for port in self._nodes)
        template = Template((_SOURCES / "native.conf.template").read_text())
        default = template.safe_substitute(FOLDER=self._prefix, LISTEN=f"{HOST}:{self.port}", SERVERS=servers)
        (self._prefix / "conf.d" / "default.conf").write_text(default)
        if self._certs:
            self._add_tls(self._certs)
        super().spawn()

    def answers(self) -> bool:
        """Whether it answers HTTP, be it that no node does."""
        return status_of(self.port, "/health") is not None

    def _add_tls(self, certs: Path) -> None:
        paths = {"TLS_CERTS": str(certs), "TLS_CONF": str(self._prefix / "conf.d" / "tls.conf")}
        env = {**self.env, **paths, "TLS_LISTEN": f"{HOST}:{self.tls_port}"}
        subprocess.run([_SOURCES / "40-tls.sh"], env=env, check=True)
