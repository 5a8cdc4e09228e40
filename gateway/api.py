"""What a process answers over HTTP besides its clients: health, readiness, metrics, and the page to try it with."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.lifecycle import Lifecycle
from gateway.metrics import CONTENT_TYPE, NodeMetrics, RelayMetrics

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self' ws: wss:; script-src 'self'; style-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


def health_routes(lifecycle: Lifecycle, metrics: NodeMetrics | RelayMetrics) -> list[BaseRoute]:
    """Return liveness `/health`, readiness `/ready` and `/metrics`."""

    async def health(_: Request) -> Response:
        return JSONResponse({"alive": lifecycle.is_alive}, 200 if lifecycle.is_alive else 503)

    async def ready(_: Request) -> Response:
        return JSONResponse(lifecycle.report(), 200 if lifecycle.is_ready else 503)

    async def exposition(_: Request) -> Response:
        return Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    metrics.ready.set_function(lambda: float(lifecycle.is_ready))
    return [Route("/health", health), Route("/ready", ready), Route("/metrics", exposition)]


def page_routes() -> list[BaseRoute]:
    """Return the chat page at `/` and its parts."""

    def route(path: str, name: str, media_type: str) -> Route:
        content = files("gateway").joinpath("page", name).read_bytes()

        async def answer(_: Request) -> Response:
            return Response(content, media_type=media_type, headers=_PAGE_HEADERS)

        return Route(path, answer)

    return [route(path, name, media_type) for path, (name, media_type) in _PAGE.items()]
