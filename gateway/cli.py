"""The command line: `gateway serve`, `relay`, `token`, `check`, `version`. Errors go to standard error."""

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway import __version__
from gateway.auth import make_token
from gateway.log import configure_logs
from gateway.server import run_node, run_relay
from gateway.settings import Settings, SettingsError, read_settings

EXIT_SETTINGS = 2

app = typer.Typer(
    help="A horizontally scaled real-time gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML settings file; the environment wins over it.")
]


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Serve a node: clients connect to it over WebSocket."""
    settings = _read(config)
    configure_logs(settings.log)
    run_node(settings)


@app.command()
def relay(config: ConfigOption = None) -> None:
    """Run a relay worker: RabbitMQ to Redis. Any number may run."""
    settings = _read(config)
    if settings.engine.is_memory:
        _fail("engine.redis_url and engine.rabbitmq_url are not set: the memory engine relays within its node")
    configure_logs(settings.log)
    run_relay(settings)


@app.command()
def token(
    user: Annotated[str, typer.Argument(help="User id, the token's `sub`.")],
    config: ConfigOption = None,
    ttl: Annotated[int, typer.Option(help="Seconds until it expires; 0 for never.", min=0)] = 3600,
) -> None:
    """Make a connection token with the configured secret."""
    secret = _read(config).auth.token_hmac_secret.get_secret_value()
    if not secret:
        _fail("auth.token_hmac_secret is not set")
    typer.echo(make_token(secret, user, time.time() + ttl if ttl else None))


@app.command()
def check(config: ConfigOption = None) -> None:
    """Validate the settings and name what they make of this process."""
    settings = _read(config)
    engine = "memory (one node, nothing durable)" if settings.engine.is_memory else "redis + rabbitmq"
    namespaces = ", ".join(sorted(settings.namespaces)) or "none"
    typer.echo(f"settings are valid: engine {engine}; namespaces: {namespaces}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _read(config: Path | None) -> Settings:
    try:
        return read_settings(config)
    except SettingsError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"gateway: {message}", err=True)
    raise typer.Exit(EXIT_SETTINGS)


def main() -> None:
    """Entry point."""
    app()
