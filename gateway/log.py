"""Structured logs on standard error: one line an event, for people or for machines."""

import logging
import sys

import structlog

from gateway.settings import LogSettings


def configure_logs(settings: LogSettings) -> None:
    """Set up structlog, and the standard library's loggers to write the same lines."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    renderer: list[structlog.typing.Processor]
    if settings.format == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, stamp, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _configure_libraries(stamp, renderer)


def _configure_libraries(stamp: structlog.typing.Processor, renderer: list[structlog.typing.Processor]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, stamp],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # uvicorn's accept lines hold query strings, which may hold tokens.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for noisy in ("aio_pika", "aiormq"):  # what they log they also raise, and the adapter says it once
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
