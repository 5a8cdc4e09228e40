"""Structured logs on standard error: one line an event, for people or for machines."""

import logging
import sys

import structlog

from gateway.settings import LogSettings


def configure_logs(settings: LogSettings) -> None:
    """Set up structlog, and quieten the libraries: uvicorn's accept lines hold query strings, which may hold tokens."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for noisy in ("aio_pika", "aiormq"):  # what they log they also raise, and the adapter says it once
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    renderer: structlog.typing.Processor
    if settings.format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
