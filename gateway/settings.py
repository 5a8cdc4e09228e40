"""Settings of a node and of a relay: frozen, read once at start, checked across fields.

Sources, later ones win: the defaults here, a TOML file (`--config` or `GATEWAY_CONFIG`), environment variables
(`GATEWAY_` and the path of the field, levels joined by `__`: `GATEWAY_CLIENT__FRAME_MAX_BYTES=65536`).
A wrong or unknown key raises SettingsError with one line that names it. docs/configuration.md is made from this file.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "GATEWAY_"
CONFIG_VARIABLE = "GATEWAY_CONFIG"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class SettingsError(ValueError):
    """The settings cannot be used; the message is one line that names the key and what is wrong with it."""


def _parse_duration(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_parse_duration), Field(ge=0, le=366 * 86400)]
"""A duration in seconds; a string with a unit (`300s`, `5m`, `24h`) is taken too."""

PositiveSeconds = Annotated[float, BeforeValidator(_parse_duration), Field(gt=0, le=366 * 86400)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(_Section):
    """Where the node listens, how many it serves, how it ends."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    page: bool = Field(False, description="Serve the small chat page at `/`, for trying things out.")
    max_connections: int = Field(
        20_000, ge=1, description="Client connections of this node; further handshakes get 503."
    )
    drain_delay_seconds: Seconds = Field(
        1.0,
        description="On SIGTERM: unready for this long before clients are closed, so that the balancer notices.",
    )
    drain_seconds: Seconds = Field(10.0, description="Closing the clients (3001) is spread over this time.")
    shutdown_timeout_seconds: PositiveSeconds = Field(
        10.0, description="After the drain: bound on flushing publications and on sockets that will not close."
    )
    close_timeout_seconds: PositiveSeconds = Field(
        5.0, description="A client that does not answer a close frame within this time is cut off."
    )


class ClientSettings(_Section):
    """Limits of one client connection."""

    connect_timeout_seconds: PositiveSeconds = Field(
        10.0, description="A client that has not sent a valid `connect` by then is closed with 3502."
    )
    ping_interval_seconds: PositiveSeconds = Field(25.0, description="Time between pings to a client.")
    pong_timeout_seconds: PositiveSeconds = Field(
        8.0, description="A client silent for this long after a ping is closed with 3012."
    )
    frame_max_bytes: int = Field(65_536, ge=256, le=16_777_216, description="Largest message taken (else close 1009).")
    channels_max: int = Field(128, ge=1, description="Subscriptions of one connection (else error 106).")
    channel_name_max_bytes: int = Field(255, ge=1, le=4096, description="Longest channel name (else error 107).")
    outbox_max_bytes: int = Field(
        1_048_576,
        ge=4096,
        description="Bytes waiting for a client that does not read; past it, close 3008. A recovery may have half.",
    )
    publish_rate_per_second: float = Field(
        500.0, gt=0, description="Publications per second and connection, a token bucket (else error 111)."
    )
    publish_burst: int = Field(1000, ge=1, description="Publications at once before the rate applies.")
    unconfirmed_max: int = Field(
        256, ge=1, description="Unconfirmed publications of one connection; at the limit it is not read."
    )
    history_limit_max: int = Field(1000, ge=1, description="Most publications one `history` reply holds.")

    @model_validator(mode="after")
    def _pong_before_next_ping(self) -> Self:
        if self.pong_timeout_seconds >= self.ping_interval_seconds:
            raise ValueError("pong_timeout_seconds must be below ping_interval_seconds")
        return self


class AuthSettings(_Section):
    """Who may connect."""

    token_hmac_secret: SecretStr = Field(
        SecretStr(""), description="Secret of HS256 connection tokens; empty: tokens are refused."
    )
    token_max_bytes: int = Field(8192, ge=64, description="Longest token looked at.")
    allow_anonymous: bool = Field(False, description="Accept `connect` without a token, as the empty user.")
    allowed_origins: tuple[str, ...] = Field(
        (),
        description="Origins of pages that may connect, e.g. `https://example.com`; `*` for any. "
        "Empty: only pages of the gateway's own host. Clients that send no Origin are not browsers and pass.",
    )


class EngineSettings(_Section):
    """Where the state lives. Without URLs: the memory engine, one node, nothing durable."""

    redis_url: SecretStr = Field(SecretStr(""), description="`redis://[user:password@]host:port/db` or `rediss://`.")
    rabbitmq_url: SecretStr = Field(SecretStr(""), description="`amqp://user:password@host:port/vhost` or `amqps://`.")
    key_prefix: str = Field(
        "gateway", pattern=r"^[A-Za-z0-9_.-]{1,32}$", description="Begins every Redis key, exchange and queue."
    )
    shards: int = Field(
        8, ge=1, le=1024, description="Relay queues. Every node and relay must agree; drain before changing it."
    )
    timeout_seconds: PositiveSeconds = Field(3.0, description="Bound on one operation at Redis or RabbitMQ.")
    reconnect_max_seconds: PositiveSeconds = Field(2.0, description="Longest pause between attempts to reconnect.")
    redis_connections_max: int = Field(16, ge=2, description="Redis connections of one process, besides pub/sub.")
    heartbeat_seconds: int = Field(
        10,
        ge=1,
        le=300,
        description="A connection to Redis or RabbitMQ silent for this long is probed, and given up without answer.",
    )
    queue_max_bytes: int = Field(
        1_073_741_824, ge=1_048_576, description="Bytes waiting in one relay queue; past it publishing is refused."
    )
    dead_letters_max_bytes: int = Field(
        268_435_456, ge=1_048_576, description="Bytes kept of batches that no relay could decode; the oldest go first."
    )
    position_ttl_seconds: PositiveSeconds = Field(
        30 * 86400.0, description="How long epoch and offset of a quiet channel are kept."
    )

    @model_validator(mode="after")
    def _both_urls_or_none(self) -> Self:
        if bool(self.redis_url.get_secret_value()) != bool(self.rabbitmq_url.get_secret_value()):
            raise ValueError("redis_url and rabbitmq_url go together: set both for a cluster, none for memory")
        return self

    @field_validator("redis_url", "rabbitmq_url")
    @classmethod
    def _known_scheme(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        schemes = ("redis://", "rediss://") if info.field_name == "redis_url" else ("amqp://", "amqps://")
        if url.get_secret_value() and not url.get_secret_value().startswith(schemes):
            raise ValueError(f"must begin with {' or '.join(schemes)}")
        return url

    @property
    def is_memory(self) -> bool:
        """Whether this is the memory engine."""
        return not self.redis_url.get_secret_value()


class PublisherSettings(_Section):
    """The way from the sessions of a node to the relay queues."""

    timeout_seconds: PositiveSeconds = Field(
        10.0, description="A publication not confirmed by then gets error 100 (temporary, outcome unknown)."
    )
    batch_max_publications: int = Field(1000, ge=1, le=10_000, description="Publications in one batch.")
    batch_max_bytes: int = Field(1_048_576, ge=65_536, description="Bytes in one batch.")
    pending_max_bytes: int = Field(
        33_554_432, ge=1_048_576, description="Bytes waiting for a confirm in this node (else error 100, temporary)."
    )


class HubSettings(_Section):
    """Local fan-out of a node."""

    linger_seconds: Seconds = Field(
        1.0, description="How long a channel without subscribers stays subscribed in Redis."
    )
    position_check_seconds: PositiveSeconds = Field(
        25.0, description="How often positions are compared with Redis: the last publication can be the lost one."
    )
    repair_max_bytes: int = Field(
        8_388_608, ge=65_536, description="Bytes held for one channel while a gap is repaired; past it, read again."
    )
    repair_window_publications: int = Field(
        128, ge=1, description="Kept per durable channel, even without history, so that nodes can repair gaps."
    )
    repair_window_seconds: PositiveSeconds = Field(60.0, description="How long those are kept.")


class RelaySettings(_Section):
    """The relay worker (`gateway relay`)."""

    host: str = Field("127.0.0.1", description="Address of the relay's `/health`, `/ready` and `/metrics`.")
    port: int = Field(9000, ge=0, le=65535, description="Port of the same; 0 takes a free one.")
    prefetch_batches: int = Field(64, ge=1, le=1000, description="Batches of one shard a relay holds unacknowledged.")
    rebalance_seconds: PositiveSeconds = Field(
        5.0, description="How often a relay that serves more than its share of busy shards hands one over."
    )
    delivery_limit: int = Field(
        100, ge=2, description="Deliveries of one batch (its relays died or handed over) before it is dead-lettered."
    )


class LogSettings(_Section):
    """Structured logs on standard error, one line an event, without payloads and tokens."""

    format: Literal["human", "json"] = Field("human", description="For people or for machines.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")


class NamespaceSettings(_Section):
    """Options of the channels of one namespace (Centrifugo's names). Everything is denied by default."""

    history_size: int = Field(0, ge=0, le=100_000, description="Publications kept per channel; 0: no history.")
    history_ttl: Seconds = Field(0.0, description="Seconds they are kept after the last publication.")
    force_recovery: bool = Field(False, description="Subscriptions are recoverable without asking for it.")
    allow_subscribe_for_client: bool = Field(False, description="Any connected client may subscribe.")
    allow_publish_for_subscriber: bool = Field(False, description="Subscribers of the channel may publish in it.")
    allow_publish_for_client: bool = Field(False, description="Any connected client may publish, subscribed or not.")
    allow_history_for_subscriber: bool = Field(False, description="Subscribers of the channel may read its history.")
    relay: Literal["durable", "direct"] = Field(
        "durable",
        description="`durable`: through RabbitMQ, confirmed. `direct`: the node commits to Redis itself: "
        "lowest latency, at most once up to the commit.",
    )

    @model_validator(mode="after")
    def _history_is_whole(self) -> Self:
        if (self.history_size > 0) != (self.history_ttl > 0):
            raise ValueError("history_size and history_ttl go together: set both or none")
        if self.force_recovery and not self.history_size:
            raise ValueError("force_recovery needs history_size and history_ttl")
        return self


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    auth: AuthSettings = AuthSettings()
    engine: EngineSettings = EngineSettings()
    publisher: PublisherSettings = PublisherSettings()
    hub: HubSettings = HubSettings()
    relay: RelaySettings = RelaySettings()
    log: LogSettings = LogSettings()
    channels: NamespaceSettings = Field(
        NamespaceSettings(), description="Options of channels without a namespace (no `:` in the name)."
    )
    namespaces: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], NamespaceSettings] = Field(
        {}, description="Options of `name:…` channels, one table a namespace."
    )

    @model_validator(mode="after")
    def _positions_outlive_history(self) -> Self:
        namespaces = {f"namespaces.{name}": options for name, options in self.namespaces.items()}
        for name, options in {"channels": self.channels, **namespaces}.items():
            if options.history_ttl > self.engine.position_ttl_seconds:
                raise ValueError(f"{name}.history_ttl must not exceed engine.position_ttl_seconds")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # What the file says arrives as init arguments: the environment must win over it.
        return (env_settings, init_settings)


def read_settings(path: Path | None = None) -> Settings:
    """Read the settings from the TOML file at `path` (or where GATEWAY_CONFIG points) and the environment.

    Raises SettingsError with one line that names the file or key at fault.
    """
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path = Path(os.environ[CONFIG_VARIABLE])
    values = _read_toml(path) if path else {}
    _check_variables()
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_first_fault(error)) from None
    except ValueError as error:  # pydantic-settings: a variable that should hold JSON does not
        raise SettingsError(f"environment: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config file {path}: {error}") from None


def _check_variables() -> None:
    """Name what pydantic-settings would pass over (unknown keys) or not name (lists that are no JSON)."""
    known = {path.upper(): field for path, field in _fields(Settings)}
    for name, value in os.environ.items():
        if not name.upper().startswith(ENV_PREFIX) or name.upper() == CONFIG_VARIABLE:
            continue
        path = name[len(ENV_PREFIX) :].upper()
        is_namespace = re.fullmatch(r"NAMESPACES(__[A-Z0-9_.-]+)?", path)
        if path not in known and not is_namespace:
            raise SettingsError(f"environment variable {name}: unknown key")
        if not is_namespace and get_origin(known[path].annotation) is tuple and not _is_json(value):
            raise SettingsError(f'environment variable {name}: must be a JSON list, as in ["a", "b"]')


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((f"{name}__{inner}", inner_field) for inner, inner_field in _fields(field.annotation))


def _is_json(value: str) -> bool:
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "settings"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {'unknown key' if fault['type'] == 'extra_forbidden' else message}"
