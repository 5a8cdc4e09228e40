"""Free TCP ports of 127.0.0.1."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

HOST = "127.0.0.1"

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that nobody uses now.

    They lie outside the range the kernel takes for outgoing connections: a server that is down for a while must get
    its port back, and a client that keeps dialling a closed port inside the range would one day connect to itself.
    """
    candidates = _candidates()
    ports: list[int] = []
    with ExitStack() as held:  # until all are found, so that no two are the same
        while len(ports) < count:
            port = candidates.pop()
            server = held.enter_context(socket.socket())
            try:
                server.bind((HOST, port))
            except OSError:
                continue
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections may linger
        try:
            server.bind((HOST, port))
        except OSError:
            return False
    return True


def _candidates() -> list[int]:
    low, high = (int(number) for number in _EPHEMERAL_RANGE.read_text().split())
    ports = [port for port in range(10_000, 65_536) if not low <= port <= high]
    random.SystemRandom().shuffle(ports)
    return ports
