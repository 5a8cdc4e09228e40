"""Every collector of a process. Children of labelled ones are bound once; nothing is labelled by channel or user."""

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from broker.envelope import Batch, CommittedGroup

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

COMMAND_METHODS = (
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "history",
    "send",
    "ping",
    "pong",
    "unavailable",
    "unknown",
    "malformed",
)
GAP_RESULTS = ("found", "repaired", "lost")
PEERS = ("redis", "rabbitmq")


class _Metrics:
    """What a node and a relay have in common."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ready = self._gauge("gateway_ready", "Whether this process is ready to serve.")
        self._reconnects = Counter(
            "gateway_reconnects", "Lost connections to a peer that are back.", ["peer"], registry=self.registry
        )
        for peer in PEERS:
            self._reconnects.labels(peer)

    def reconnected(self, peer: str) -> None:
        """Count a lost connection to a peer that is back."""
        self._reconnects.labels(peer).inc()

    def exposition(self) -> bytes:
        """All collectors in the Prometheus text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, function: Callable[[], float] | None = None) -> Gauge:
        gauge = Gauge(name, text, registry=self.registry)
        if function is not None:
            gauge.set_function(function)
        return gauge

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)


class NodeMetrics(_Metrics):
    """Collectors of a node."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = self._gauge("gateway_connections", "Client connections.")
        self.subscriptions = self._gauge("gateway_subscriptions", "Subscriptions of client connections.")
        self.channels = self._gauge("gateway_channels", "Channels this node follows.")
        self.outbox_bytes = self._gauge("gateway_outbox_bytes", "Bytes waiting to be written to clients.")
        self.messages_in = self._counter("gateway_messages_in", "Commands received from clients.")
        self.messages_out = self._counter("gateway_messages_out", "Replies and pushes written to clients.")
        self.slow_disconnects = self._counter("gateway_slow_disconnects", "Clients closed because they did not read.")
        self.confirm_seconds = self._histogram(
            "gateway_publish_confirm_seconds", "From a batch's first publication to its confirm."
        )
        self.deliver_seconds = self._histogram(
            "gateway_commit_deliver_seconds", "From commit in Redis to the outboxes of this node."
        )
        self.end_to_end_seconds = self._histogram(
            "gateway_end_to_end_seconds", "From taking a publication to the outboxes of this node."
        )
        self.batch_publications = self._histogram("gateway_batch_publications", "Publications in a batch.", _COUNTS)
        self._disconnects = Counter(
            "gateway_disconnects", "Connections closed by the server.", ["code"], registry=self.registry
        )
        self._gaps = Counter("gateway_gaps", "Offset gaps heard by this node.", ["result"], registry=self.registry)
        self._commands = Counter(
            "gateway_commands", "Commands by method and result.", ["method", "result"], registry=self.registry
        )
        self.gaps = {result: self._gaps.labels(result) for result in GAP_RESULTS}
        self.commands_ok = {method: self._commands.labels(method, "ok") for method in COMMAND_METHODS}

    def command_failed(self, method: str, code: int) -> None:
        """Count a command that was answered with an error."""
        self._commands.labels(method, str(code)).inc()

    def disconnected(self, code: int) -> None:
        """Count a connection that the server closed."""
        self._disconnects.labels(str(code)).inc()

    def delivered(self, group: CommittedGroup) -> None:
        """Time a live group that was just put into the outboxes."""
        now = time.time()
        self.deliver_seconds.observe(max(0.0, now - group.committed))
        for publication in group.publications:
            self.end_to_end_seconds.observe(max(0.0, now - publication.time / 1000))


class RelayMetrics(_Metrics):
    """Collectors of a relay; a RelayObserver."""

    def __init__(self) -> None:
        super().__init__()
        self.commit_seconds = self._histogram(
            "gateway_confirm_commit_seconds", "From sending a batch to RabbitMQ to its commit in Redis."
        )
        self._batches = Counter(
            "gateway_relay_batches", "Batches settled by this relay.", ["result"], registry=self.registry
        )
        self._committed = self._batches.labels("committed")
        self._dead = self._batches.labels("dead")

    def committed(self, batch: Batch, seconds: float) -> None:
        """Count a batch that was committed, so many seconds after its publisher sent it."""
        self._committed.inc()
        self.commit_seconds.observe(max(0.0, seconds))

    def dead(self) -> None:
        """Count a batch that went to the dead-letter queue."""
        self._dead.inc()


__all__ = ["CONTENT_TYPE", "NodeMetrics", "RelayMetrics"]
