"""What processes answer over HTTP: their metrics, as Prometheus would read them, and whether they are ready."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deploy.cluster import Cluster, Gateway

from .waiting import WITHIN_SECONDS


class Metrics:
    """One scrape."""

    def __init__(self, exposition: str) -> None:
        families = text_string_to_metric_families(exposition)
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels."""
        return sum(
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        )


async def scrape(url: str) -> Metrics:
    """Read the metrics of the process at `url`."""
    async with http_client() as client:
        return Metrics((await client.get(f"{url}/metrics")).raise_for_status().text)


def http_client() -> httpx.AsyncClient:
    """A client for servers of this machine: without proxies, and without reading certificates first."""
    return httpx.AsyncClient(trust_env=False, verify=False, timeout=WITHIN_SECONDS)


async def status_of(url: str) -> int | None:
    """The status of a GET request; None when there is no answer."""
    async with http_client() as client:
        try:
            return (await client.get(url)).status_code
        except httpx.TransportError:
            return None


async def fullest_node(cluster: Cluster) -> Gateway:
    """The node with most connections."""
    counts = {node: (await scrape(node.url)).value("gateway_connections") for node in cluster.nodes}
    node = max(counts, key=lambda node: counts[node])
    assert counts[node] >= 2
    return node
