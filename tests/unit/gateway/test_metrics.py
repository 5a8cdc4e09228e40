"""Metrics: names that dashboards rely on, children that are there before anything happens."""

import time

import pytest

from broker.envelope import Batch, CommittedGroup, Publication
from gateway.metrics import COMMAND_METHODS, CONTENT_TYPE, NodeMetrics, RelayMetrics

NODE_SERIES = [
    "gateway_ready 0.0",
    "gateway_connections 0.0",
    "gateway_subscriptions 0.0",
    "gateway_channels 0.0",
    "gateway_outbox_bytes 0.0",
    "gateway_messages_in_total 0.0",
    "gateway_messages_out_total 0.0",
    "gateway_slow_disconnects_total 0.0",
    "gateway_publish_confirm_seconds_count 0.0",
    "gateway_commit_deliver_seconds_count 0.0",
    "gateway_end_to_end_seconds_count 0.0",
    "gateway_batch_publications_count 0.0",
    'gateway_gaps_total{result="found"} 0.0',
    'gateway_gaps_total{result="repaired"} 0.0',
    'gateway_gaps_total{result="lost"} 0.0',
    'gateway_reconnects_total{peer="redis"} 0.0',
    'gateway_reconnects_total{peer="rabbitmq"} 0.0',
    'gateway_commands_total{method="publish",result="ok"} 0.0',
    "# TYPE gateway_disconnects_total counter",
]
RELAY_SERIES = [
    "gateway_ready 0.0",
    "gateway_confirm_commit_seconds_count 0.0",
    'gateway_relay_batches_total{result="committed"} 0.0',
    'gateway_relay_batches_total{result="dead"} 0.0',
    'gateway_reconnects_total{peer="redis"} 0.0',
]


@pytest.mark.parametrize("series", NODE_SERIES)
def test_node_exposes(series: str) -> None:
    assert series in NodeMetrics().exposition().decode().splitlines()


@pytest.mark.parametrize("series", RELAY_SERIES)
def test_relay_exposes(series: str) -> None:
    assert series in RelayMetrics().exposition().decode().splitlines()


def test_exposition_is_the_prometheus_text_format() -> None:
    assert CONTENT_TYPE.startswith("text/plain")
    assert NodeMetrics().exposition().endswith(b"\n")


def value(metrics: NodeMetrics | RelayMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, f"no series {name}"
    return found


def test_two_nodes_in_a_process_count_for_themselves() -> None:
    one, other = NodeMetrics(), NodeMetrics()
    one.messages_in.inc()
    assert value(one, "gateway_messages_in_total") == 1
    assert value(other, "gateway_messages_in_total") == 0


@pytest.mark.parametrize("method", COMMAND_METHODS)
def test_commands_are_counted_by_method_and_result(method: str) -> None:
    metrics = NodeMetrics()
    metrics.commands_ok[method].inc()
    metrics.command_failed(method, 103)
    metrics.command_failed(method, 103)
    assert value(metrics, "gateway_commands_total", method=method, result="ok") == 1
    assert value(metrics, "gateway_commands_total", method=method, result="103") == 2


def test_disconnects_are_counted_by_code() -> None:
    metrics = NodeMetrics()
    metrics.disconnected(3008)
    assert value(metrics, "gateway_disconnects_total", code="3008") == 1


def test_reconnects_are_counted_by_peer() -> None:
    metrics = RelayMetrics()
    metrics.reconnected("redis")
    assert value(metrics, "gateway_reconnects_total", peer="redis") == 1


def test_delivery_is_timed_from_the_commit_and_from_the_taking_of_each_publication() -> None:
    metrics, now = NodeMetrics(), time.time()
    publications = [Publication(b"1", time=int((now - 20) * 1000)), Publication(b"2", time=int((now - 30) * 1000))]
    metrics.delivered(CommittedGroup("c", "e", 1, publications, now - 10))
    assert value(metrics, "gateway_commit_deliver_seconds_count") == 1
    assert 10 <= value(metrics, "gateway_commit_deliver_seconds_sum") < 15
    assert value(metrics, "gateway_end_to_end_seconds_count") == 2
    assert 50 <= value(metrics, "gateway_end_to_end_seconds_sum") < 60


def test_clocks_that_differ_make_no_negative_times() -> None:
    metrics, later = NodeMetrics(), time.time() + 1000
    metrics.delivered(CommittedGroup("c", "e", 1, [Publication(b"1", time=int(later * 1000))], later))
    assert value(metrics, "gateway_commit_deliver_seconds_sum") == 0
    assert value(metrics, "gateway_end_to_end_seconds_sum") == 0


def test_relay_counts_and_times_batches() -> None:
    metrics = RelayMetrics()
    metrics.committed(Batch("p", 1, []), 0.5)
    metrics.committed(Batch("p", 2, []), -1.0)
    metrics.dead()
    assert value(metrics, "gateway_relay_batches_total", result="committed") == 2
    assert value(metrics, "gateway_relay_batches_total", result="dead") == 1
    assert value(metrics, "gateway_confirm_commit_seconds_sum") == 0.5
