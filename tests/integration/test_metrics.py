"""What the processes tell about themselves, directly and through a real Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from deploy.cluster import Cluster, Process, free_ports
from deploy.cluster.environment import ROOT, inherited, program
from deploy.cluster.http import status_of
from deploy.cluster.ports import HOST

from .http import http_client, scrape
from .sdks import SDKS, Sdks
from .waiting import until

pytestmark = pytest.mark.servers

ON_NODES = ["gateway_publish_confirm_seconds", "gateway_commit_deliver_seconds", "gateway_end_to_end_seconds"]
ON_RELAYS = ["gateway_confirm_commit_seconds"]
PUBLICATIONS = 20


async def total(processes: Sequence[Process], name: str, **labels: str) -> float:
    """The sum over processes."""
    return sum([(await scrape(process.url)).value(name, **labels) for process in processes])


async def exchange(cluster: Cluster, sdks: Sdks, channel: str) -> None:
    """A client on each node; each publishes, and each receives everything."""
    clients = [await sdks.client(sdk, node.ws_url) for sdk, node in zip(SDKS * 2, cluster.nodes, strict=False)]
    for client in clients:
        await client.subscribe(channel)
    for number in range(PUBLICATIONS):
        await asyncio.gather(*(client.publish(channel, number) for client in clients))
    for client in clients:
        await client.has_received(channel, PUBLICATIONS * len(clients))


async def test_way_of_a_message_is_timed(cluster: Cluster, sdks: Sdks, channel: str) -> None:
    async def counts() -> dict[str, float]:
        return {
            **{name: await total(cluster.nodes, f"{name}_count") for name in ON_NODES},
            **{name: await total(cluster.relays, f"{name}_count") for name in ON_RELAYS},
            "published": await total(cluster.nodes, "gateway_commands_total", method="publish", result="ok"),
            "committed": await total(cluster.relays, "gateway_relay_batches_total", result="committed"),
            "received": await total(cluster.nodes, "gateway_messages_in_total"),
        }

    before = await counts()
    await exchange(cluster, sdks, channel)
    grown: dict[str, float] = {}

    async def batches_are_counted() -> bool:  # a relay counts after it has told the nodes
        after = await counts()
        grown.update({name: after[name] - before[name] for name in before})
        return grown["committed"] == grown["gateway_publish_confirm_seconds"]

    await until(batches_are_counted, "each batch was confirmed and committed")
    number = PUBLICATIONS * len(cluster.nodes)
    deliveries = number * len(cluster.nodes)
    assert grown["published"] == number
    assert PUBLICATIONS <= grown["gateway_publish_confirm_seconds"] <= number  # batches
    assert grown["gateway_confirm_commit_seconds"] == grown["committed"]
    assert PUBLICATIONS <= grown["gateway_commit_deliver_seconds"] <= deliveries  # groups
    # A node that happens to compare positions just now reads some from the stream; those are not timed.
    assert 0.8 * deliveries <= grown["gateway_end_to_end_seconds"] <= deliveries
    assert grown["received"] >= number + 2 * len(cluster.nodes)  # connect and subscribe, and perhaps pongs

    for processes, names in ((cluster.nodes, ON_NODES), (cluster.relays, ON_RELAYS)):
        for name in names:
            mean = await total(processes, f"{name}_sum") / await total(processes, f"{name}_count")
            assert 0 < mean < 60, name


class Prometheus(Process):
    """A private Prometheus that scrapes nodes and relays every second, with the rules of the compose stack."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        (self.port,) = free_ports(1)
        config = folder / "prometheus.yml"
        rules = ROOT / "deploy" / "prometheus" / "rules.yml"
        lines = [
            "global: {scrape_interval: 1s, evaluation_interval: 1s}",
            f"rule_files: ['{rules}']",
            "scrape_configs:",
        ]
        for job, processes in (("gateway", cluster.nodes), ("relay", cluster.relays)):
            targets = [f"{HOST}:{process.port}" for process in processes]
            lines += [f"- job_name: {job}", f"  static_configs: [{{targets: {targets}}}]"]
        config.write_text("\n".join(lines))
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={HOST}:{self.port}",
        ]
        super().__init__("prometheus", command, url=f"http://{HOST}:{self.port}", folder=folder, env=inherited())

    def answers(self) -> bool:
        """Whether it answers queries."""
        return status_of(self.port, "/-/ready") == 200

    async def value(self, query: str) -> float | None:
        """The value of a query whose answer is one number; None when it has no answer."""
        async with http_client() as client:
            answer = (await client.get(f"{self.url}/api/v1/query", params={"query": query})).raise_for_status().json()
        result = answer["data"]["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.fixture
async def prometheus(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """A running Prometheus."""
    prometheus = Prometheus(tmp_path, cluster)
    await asyncio.to_thread(prometheus.start)
    yield prometheus
    await asyncio.to_thread(prometheus.stop)


async def test_prometheus(cluster: Cluster, sdks: Sdks, channel: str, prometheus: Prometheus) -> None:
    await exchange(cluster, sdks, channel)

    async def agrees(query: str, expected: float) -> None:
        async def is_answered() -> bool:
            return await prometheus.value(query) == expected

        await until(is_answered, f"{query} is {expected}")

    await agrees('sum(up{job="gateway"})', len(cluster.nodes))
    await agrees('sum(up{job="relay"})', len(cluster.relays))
    await agrees("sum(gateway_ready)", len(cluster.nodes) + len(cluster.relays))
    await agrees("sum(gateway_connections)", len(cluster.nodes))
    for name in ON_NODES:
        await agrees(f"sum({name}_count)", await total(cluster.nodes, f"{name}_count"))
    for name in ON_RELAYS:
        await agrees(f"sum({name}_count)", await total(cluster.relays, f"{name}_count"))

    p99 = await prometheus.value("histogram_quantile(0.99, sum by (le) (gateway_end_to_end_seconds_bucket))")
    assert p99
    assert 0 < p99 <= 30

    async with http_client() as client:
        answer = (await client.get(f"{prometheus.url}/api/v1/rules")).json()
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert len(rules) > 5
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # unknown: not evaluated so far
