"""The parts of the local cluster, each alone and without a gateway: they start, die, come back, and leave no trace."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aio_pika
import httpx
import pytest
import redis

from deploy.cluster import Nginx, Process, ProcessError, RabbitMQ, Redis, free_ports
from deploy.cluster.processes import wait_until

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]


def processes_of(folder: Path) -> set[str]:
    """Names of the living processes that have to do with the folder: environment, command line or output."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            outputs = [os.readlink(process / "fd" / "1"), os.readlink(process / "fd" / "2")]
            texts = [(process / name).read_bytes().decode(errors="replace") for name in ("environ", "cmdline")]
            if any(str(folder) in text for text in (*outputs, *texts)):
                names.add((process / "comm").read_text().strip())
    return names


def is_left_alone(folder: Path) -> bool:
    return wait_until(lambda: not processes_of(folder), timeout=10)


def is_registered(folder: Path, queue: str) -> bool:
    """Whether the register of quorum queues is on disk: RabbitMQ 3.10 writes it a second after the declaration.

    A broker killed before that finds the queue again without its messages and without a leader, and it never works.
    """
    return any(queue.encode() in register.read_bytes() for register in folder.rglob("quorum/*/names.dets"))


def test_redis_keeps_its_data_when_it_is_killed(tmp_path: Path) -> None:
    server = Redis(tmp_path)
    with server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        assert server.kill() == -9
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        server.restart()
        assert client.get("key") == b"value"
        assert server.stop() == 0
        server.start()
        assert client.get("key") == b"value"
    assert server.exit_code == 0
    assert is_left_alone(tmp_path)


async def test_rabbitmq_keeps_its_data_when_it_is_killed(tmp_path: Path) -> None:
    server = RabbitMQ(tmp_path)
    with server:
        assert processes_of(tmp_path) >= {"beam.smp", "epmd"}
        async with await aio_pika.connect(server.url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
            await channel.default_exchange.publish(aio_pika.Message(b"body", delivery_mode=2), queue.name)
            assert wait_until(lambda: is_registered(tmp_path, queue.name), timeout=10)
            assert server.kill() == -9
        assert is_left_alone(tmp_path)
        server.restart()
        async with await aio_pika.connect(server.url) as connection:
            queue = await (await connection.channel()).get_queue("kept")
            message = await queue.get(timeout=10)
            assert message is not None
            assert message.body == b"body"
    assert server.exit_code == 0
    assert is_left_alone(tmp_path)


def test_nothing_outlives_a_killed_program(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from deploy.cluster import Nginx, RabbitMQ, Redis
folder = Path({str(tmp_path)!r})
servers = [Redis(folder), RabbitMQ(folder), Nginx(folder, port={free_ports(1)[0]}, nodes=[1])]
for server in servers:
    server.start()
print("started", flush=True)
input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"started\n"
        assert processes_of(tmp_path) >= {"redis-server", "beam.smp", "epmd", "nginx"}
        launcher.kill()
    assert is_left_alone(tmp_path)


def test_a_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    server = Redis(tmp_path)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    assert server.answers()
    assert server.stop() == 0


def test_a_frozen_server_keeps_its_connections_and_is_silent(tmp_path: Path) -> None:
    with Redis(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port), timeout=0.3) as client:
        server.pause()
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(64)
        server.resume()
        client.settimeout(10)
        assert client.recv(64) == b"+PONG\r\n"
        server.pause()
    assert server.exit_code == 0  # a frozen one can be stopped too


def test_a_process_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    class Broken(Process):
        """Never answers."""

        def answers(self) -> bool:
            return False

    broken = Broken("broken", ["sh", "-c", "echo no such luck; exit 3"], url="", folder=tmp_path, env=dict(os.environ))
    with pytest.raises(ProcessError, match=r"broken ended with exit code 3[^\0]*no such luck"):
        broken.start()


@contextmanager
def stub_node(status: Callable[[], int]) -> Iterator[ThreadingHTTPServer]:
    """A node that answers every GET with a status, its own port and what nginx has told it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            names = ("Host", "X-Forwarded-For", "X-Forwarded-Proto", "Connection", "Upgrade")
            body = "\n".join([str(server.server_port), *(f"{name}: {self.headers[name]}" for name in names)])
            self.send_response(status())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_nginx_tells_the_node_who_asks_and_hides_inner_paths(tmp_path: Path) -> None:
    with stub_node(lambda: 200) as node:
        port = free_ports(1)[0]
        with Nginx(tmp_path, port=port, nodes=[node.server_port]) as nginx, httpx.Client() as client:
            told = client.get(f"{nginx.url}/?token=secret", headers={"X-Forwarded-For": "6.6.6.6"}).text
            assert f"Host: 127.0.0.1:{port}" in told
            assert "X-Forwarded-For: 127.0.0.1\n" in told
            assert "X-Forwarded-Proto: http\n" in told
            upgrade = {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket"}
            told = client.get(f"{nginx.url}/connection/websocket?token=secret", headers=upgrade).text
            assert "Connection: upgrade\nUpgrade: websocket" in told
            assert client.get(f"{nginx.url}/health").status_code == 200
            for path in ("/api", "/api/publish", "//api/publish", "/%61pi/publish", "/x/../api", "/metrics", "/ready"):
                with socket.create_connection(("127.0.0.1", port)) as connection:  # as it is: httpx would clean it
                    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    assert connection.recv(64).startswith(b"HTTP/1.1 404"), path
    log = nginx.log.read_text()
    assert '"path":"/connection/websocket"' in log
    assert "secret" not in log


def test_nginx_passes_over_a_node_that_is_unready_or_gone(tmp_path: Path) -> None:
    statuses = {"first": 200}
    with stub_node(lambda: statuses["first"]) as first, stub_node(lambda: 200) as second:
        ports = [first.server_port, second.server_port, free_ports(1)[0]]  # nobody listens on the last
        with Nginx(tmp_path, port=free_ports(1)[0], nodes=ports) as nginx, httpx.Client() as client:

            def serving() -> set[int]:
                responses = [client.get(f"{nginx.url}/health?token=secret") for _ in range(20)]
                assert {response.status_code for response in responses} == {200}
                return {int(response.text.splitlines()[0]) for response in responses}

            assert serving() == set(ports[:2])
            statuses["first"] = 503
            assert serving() == {ports[1]}
    assert "secret" not in nginx.log.read_text()  # nor where it says what went wrong
