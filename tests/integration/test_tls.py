"""wss:// through nginx, with a self-signed certificate."""

import ssl

import pytest

from deploy.cluster import Cluster

from .clients import RawClient
from .sdks import SDKS, SdkName, Sdks

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("sdk", SDKS)
async def test_publish_and_receive(cluster: Cluster, sdks: Sdks, channel: str, sdk: SdkName) -> None:
    clients = [await sdks.client(sdk, cluster.wss_url) for _ in range(3)]
    for client in clients:
        await client.subscribe(channel)
    for client in clients:
        await client.publish(channel, client.name)
    for client in clients:
        await client.has_received(channel, 3)
        assert client.data(channel) == [one.name for one in clients]


async def test_certificate_is_not_trusted_unasked(cluster: Cluster) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        async with RawClient.open(cluster.wss_url):
            pass
