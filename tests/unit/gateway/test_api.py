"""Health, readiness, metrics and the page, over HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette

from gateway.api import health_routes, page_routes
from gateway.lifecycle import Lifecycle, Phase
from gateway.metrics import CONTENT_TYPE, NodeMetrics

Get = Callable[[str], Awaitable[httpx.Response]]


@pytest.fixture
def lifecycle() -> Lifecycle:
    lifecycle = Lifecycle()
    lifecycle.phase = Phase.SERVING
    return lifecycle


@pytest.fixture
async def get(lifecycle: Lifecycle) -> AsyncIterator[Get]:
    """GET from an app with these routes."""
    app = Starlette(routes=health_routes(lifecycle, NodeMetrics()) + page_routes())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
        yield client.get


STATES: list[tuple[Phase, dict[str, bool], str | None, int, int]] = [
    (Phase.STARTING, {}, None, 200, 503),
    (Phase.SERVING, {"redis": True}, None, 200, 200),
    (Phase.SERVING, {"redis": False}, None, 200, 503),
    (Phase.SERVING, {"redis": True}, "Hub.run", 503, 503),
    (Phase.DRAINING, {"redis": True}, None, 200, 503),
]


@pytest.mark.parametrize(("phase", "peers", "failed", "health", "ready"), STATES)
async def test_health_and_readiness(
    lifecycle: Lifecycle, get: Get, phase: Phase, peers: dict[str, bool], failed: str | None, health: int, ready: int
) -> None:
    lifecycle.phase, lifecycle.peers, lifecycle.failed = phase, lambda: peers, failed
    answer = await get("/health")
    assert (answer.status_code, answer.json()) == (health, {"alive": health == 200})
    answer = await get("/ready")
    assert (answer.status_code, answer.json()) == (ready, lifecycle.report())


async def test_metrics_are_in_the_prometheus_format_and_say_whether_the_process_is_ready(
    lifecycle: Lifecycle, get: Get
) -> None:
    answer = await get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    assert "\ngateway_ready 1.0\n" in answer.text
    lifecycle.phase = Phase.DRAINING
    assert "\ngateway_ready 0.0\n" in (await get("/metrics")).text


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")],
)
async def test_page_is_served_with_a_policy_that_lets_nothing_foreign_in(
    get: Get, path: str, content_type: str
) -> None:
    answer = await get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == f"{content_type}; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/nowhere", "/page", "/index.html", "/../gateway/settings.py"])
async def test_nothing_else_is_served(get: Get, path: str) -> None:
    assert (await get(path)).status_code == 404
