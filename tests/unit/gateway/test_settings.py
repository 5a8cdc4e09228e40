"""Settings: defaults, file, environment over it; and one line that names the key when something is wrong."""

import os
from pathlib import Path

import pytest

from gateway.settings import (
    AuthSettings,
    ClientSettings,
    EngineSettings,
    NamespaceSettings,
    Settings,
    SettingsError,
    read_settings,
)

ROOT = Path(__file__).resolve().parents[3]
SECRET = "c0rrect-horse-battery-staple-and-more"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where a test writes its settings file."""
    return tmp_path / "config.toml"


def faults_of(config: Path) -> str:
    """The message of the SettingsError that reading raises: always one line."""
    with pytest.raises(SettingsError) as caught:
        read_settings(config)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# Sources.


def test_defaults_are_a_memory_node_that_denies_everything() -> None:
    settings = read_settings()
    assert settings == Settings()
    assert settings.engine.is_memory
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert not settings.auth.allow_anonymous
    assert settings.auth.allowed_origins == ()
    assert settings.channels == NamespaceSettings()
    assert settings.namespaces == {}
    permissions = {name: value for name, value in settings.channels if name.startswith("allow_")}
    assert len(permissions) == 4
    assert not any(permissions.values())


def test_default_limits_are_those_of_the_issue() -> None:
    client = ClientSettings()
    assert client.frame_max_bytes == 64 * 1024
    assert client.channels_max == 128
    assert client.channel_name_max_bytes == 255
    assert client.outbox_max_bytes == 1024 * 1024
    assert client.connect_timeout_seconds == 10
    assert (client.ping_interval_seconds, client.pong_timeout_seconds) == (25, 8)


def test_file_changes_what_it_names_and_nothing_else(config: Path) -> None:
    config.write_text("[server]\nport = 9999\n[namespaces.chat]\nhistory_size = 5\nhistory_ttl = 60\n")
    settings = read_settings(config)
    assert settings.server.port == 9999
    assert settings.server.host == "127.0.0.1"
    assert settings.namespaces == {"chat": NamespaceSettings(history_size=5, history_ttl=60)}
    assert settings.client == ClientSettings()


def test_environment_wins_over_the_file_key_by_key(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[server]\nport = 9999\nhost = '0.0.0.0'\n[namespaces.chat]\nrelay = 'direct'\n")
    monkeypatch.setenv("GATEWAY_SERVER__PORT", "7777")
    monkeypatch.setenv("GATEWAY_NAMESPACES__chat__allow_subscribe_for_client", "true")
    monkeypatch.setenv("GATEWAY_NAMESPACES__news__relay", "direct")
    settings = read_settings(config)
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 7777)
    assert settings.namespaces == {
        "chat": NamespaceSettings(relay="direct", allow_subscribe_for_client=True),
        "news": NamespaceSettings(relay="direct"),
    }


def test_environment_variable_names_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[server]\nport = 9999\n")
    monkeypatch.setenv("GATEWAY_CONFIG", str(config))
    assert read_settings().server.port == 9999


def test_named_file_wins_over_the_one_of_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[server]\nport = 9999\n")
    monkeypatch.setenv("GATEWAY_CONFIG", "/does/not/exist.toml")
    assert read_settings(config).server.port == 9999


VARIABLES: list[tuple[str, str, str, object]] = [
    ("GATEWAY_CLIENT__FRAME_MAX_BYTES", "1024", "client.frame_max_bytes", 1024),
    ("gateway_client__frame_max_bytes", "1024", "client.frame_max_bytes", 1024),
    ("GATEWAY_HUB__LINGER_SECONDS", "250ms", "hub.linger_seconds", 0.25),
    ("GATEWAY_SERVER__PAGE", "true", "server.page", True),
    ("GATEWAY_AUTH__ALLOWED_ORIGINS", '["https://a.example"]', "auth.allowed_origins", ("https://a.example",)),
    ("GATEWAY_LOG", '{"format": "json"}', "log.format", "json"),
    ("GATEWAY_CHANNELS__RELAY", "direct", "channels.relay", "direct"),
]


@pytest.mark.parametrize(("name", "value", "key", "expected"), VARIABLES)
def test_environment_variable_sets_a_nested_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    section, _, field = key.partition(".")
    assert getattr(getattr(read_settings(), section), field) == expected


def test_variables_of_others_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAYS__SERVER__PORT", "1")
    monkeypatch.setenv("SERVER__PORT", "1")
    assert read_settings() == Settings()


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.server = settings.server  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]


# Durations.

DURATIONS = [("0", 0.0), ("1.5", 1.5), ("'300s'", 300.0), ("'5m'", 300.0), ("'24h'", 86_400.0), ("'2d'", 172_800.0),
             ("'250ms'", 0.25), ("'1.5h'", 5400.0), ("' 10s '", 10.0)]  # fmt: skip


@pytest.mark.parametrize(("value", "seconds"), DURATIONS)
def test_duration_is_seconds_or_has_a_unit(config: Path, value: str, seconds: float) -> None:
    config.write_text(f"[hub]\nlinger_seconds = {value}\n")
    assert read_settings(config).hub.linger_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["'5 minutes'", "'5w'", "'-5s'", "'s'", "''", "'5m5s'", "-1", "nan", "inf", "[]"])
def test_what_is_no_duration_is_named(config: Path, value: str) -> None:
    config.write_text(f"[hub]\nlinger_seconds = {value}\n")
    assert faults_of(config).startswith("hub.linger_seconds: ")


# Faults.

FAULTS: list[tuple[str, str, str]] = [
    # what is wrong, the file, how the message begins
    ("unknown section", "[sever]\nport = 1\n", "sever: unknown key"),
    ("unknown key", "[server]\nprot = 1\n", "server.prot: unknown key"),
    ("unknown key at the top", "port = 1\n", "port: unknown key"),
    ("unknown key of a namespace", "[namespaces.chat]\nhistory = 1\n", "namespaces.chat.history: unknown key"),
    ("unknown key of the top-level", "[channels]\nhistory = 1\n", "channels.history: unknown key"),
    ("wrong type", "[server]\nport = 'http'\n", "server.port: "),
    ("wrong type of a section", "server = 5\n", "server: "),
    ("wrong type of a flag", "[server]\npage = 'maybe'\n", "server.page: "),
    ("wrong type of a list", "[auth]\nallowed_origins = 'https://a.example'\n", "auth.allowed_origins: "),
    ("wrong type of a secret", "[auth]\ntoken_hmac_secret = 5\n", "auth.token_hmac_secret: "),
    ("not one of the choices", "[log]\nlevel = 'loud'\n", "log.level: "),
    ("not one of the choices of a namespace", "[namespaces.a]\nrelay = 'fast'\n", "namespaces.a.relay: "),
    ("too small", "[client]\nframe_max_bytes = 255\n", "client.frame_max_bytes: "),
    ("too large", "[server]\nport = 65536\n", "server.port: "),
    ("duration of 0", "[client]\nping_interval_seconds = 0\n", "client.ping_interval_seconds: "),
    ("name of a namespace", "[namespaces.'a b']\nhistory_size = 0\n", "namespaces.a b: "),
    ("name of a namespace with a colon", "[namespaces.'a:b']\nhistory_size = 0\n", "namespaces.a:b: "),
    ("prefix that RabbitMQ refuses", "[engine]\nkey_prefix = 'a b'\n", "engine.key_prefix: "),
    (
        "pong after the next ping",
        "[client]\nping_interval_seconds = 5\n",
        "client: pong_timeout_seconds must be below ping_interval_seconds",
    ),
    ("Redis alone", "[engine]\nredis_url = 'redis://h'\n", "engine: redis_url and rabbitmq_url go together"),
    ("RabbitMQ alone", "[engine]\nrabbitmq_url = 'amqp://h'\n", "engine: redis_url and rabbitmq_url go together"),
    ("size without ttl", "[channels]\nhistory_size = 5\n", "channels: history_size and history_ttl go together"),
    ("ttl without size", "[namespaces.a]\nhistory_ttl = 5\n", "namespaces.a: history_size and history_ttl go together"),
    ("recovery without history", "[channels]\nforce_recovery = true\n", "channels: force_recovery needs history_size"),
    (
        "history that outlives positions",
        "[engine]\nposition_ttl_seconds = 60\n[namespaces.a]\nhistory_size = 1\nhistory_ttl = 61\n",
        "settings: namespaces.a.history_ttl must not exceed engine.position_ttl_seconds",
    ),
]


@pytest.mark.parametrize(
    ("text", "message"), [(text, message) for _, text, message in FAULTS], ids=[name for name, *_ in FAULTS]
)
def test_fault_in_the_file_is_one_line_that_names_the_key(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    assert faults_of(config).startswith(message)


VARIABLE_FAULTS: list[tuple[str, str, str]] = [
    ("GATEWAY_SERVER__PROT", "1", "environment variable GATEWAY_SERVER__PROT: unknown key"),
    ("GATEWAY_PORT", "1", "environment variable GATEWAY_PORT: unknown key"),
    ("GATEWAY_SERVER_PORT", "1", "environment variable GATEWAY_SERVER_PORT: unknown key"),
    ("gateway_sever__port", "1", "environment variable gateway_sever__port: unknown key"),
    ("GATEWAY_NAMESPACES__chat__history", "1", "namespaces.chat.history: unknown key"),
    ("GATEWAY_SERVER__PORT", "http", "server.port: "),
    ("GATEWAY_SERVER__PAGE", "maybe", "server.page: "),
    ("GATEWAY_CLIENT__PING_INTERVAL_SECONDS", "1s", "client: pong_timeout_seconds must be below"),
    ("GATEWAY_SERVER", "no JSON", 'environment: error parsing value for field "server"'),
]


@pytest.mark.parametrize(("name", "value", "message"), VARIABLE_FAULTS)
def test_fault_in_the_environment_is_one_line_that_names_the_key(
    monkeypatch: pytest.MonkeyPatch, config: Path, name: str, value: str, message: str
) -> None:
    config.write_text("")
    monkeypatch.setenv(name, value)
    assert faults_of(config).startswith(message)


def test_list_in_the_environment_that_is_no_json_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("")
    monkeypatch.setenv("GATEWAY_AUTH__ALLOWED_ORIGINS", "https://a.example")
    assert "GATEWAY_AUTH__ALLOWED_ORIGINS: must be a JSON list" in faults_of(config)


def test_missing_file_is_named(config: Path) -> None:
    assert faults_of(config) == f"config file {config}: No such file or directory"


@pytest.mark.parametrize("text", [b"port = \n", b"[server\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_file_that_is_no_toml_is_named(config: Path, text: bytes) -> None:
    config.write_bytes(text)
    assert faults_of(config).startswith(f"config file {config}: ")


URLS = [("redis_url", "http://h:1/"), ("redis_url", "localhost:6379"), ("rabbitmq_url", "redis://h"),
        ("rabbitmq_url", "rabbitmq:5672")]  # fmt: skip


@pytest.mark.parametrize(("key", "url"), URLS)
def test_url_of_another_scheme_is_named(config: Path, key: str, url: str) -> None:
    urls = {"redis_url": "redis://h:6379/0", "rabbitmq_url": "amqp://h:5672/"} | {key: url}
    config.write_text("[engine]\n" + "".join(f"{name} = {value!r}\n" for name, value in urls.items()))
    assert key in faults_of(config)


# Secrets.


def test_secrets_are_never_shown() -> None:
    auth = AuthSettings(token_hmac_secret=SECRET)
    engine = EngineSettings(redis_url=f"redis://:{SECRET}@h", rabbitmq_url=f"amqp://u:{SECRET}@h")
    settings = Settings(auth=auth, engine=engine)
    assert settings.auth.token_hmac_secret.get_secret_value() == SECRET
    for text in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in text


SECRET_FAULTS = [
    f"[auth]\ntoken_hmac_secret = ['{SECRET}']\n",
    f"[engine]\nredis_url = 'redis://:{SECRET}@h'\n",
    f"[engine]\nrabbitmq_url = 'amqp://u:{SECRET}@h'\n",
    f"[auth]\ntoken_hmac_secret = '{SECRET}'\ntoken_max_bytes = 1\n",
    f"[auth]\ntoken_hmac_secret = '{SECRET}'\nsecret = '{SECRET}'\n",
    f"[auth]\ntoken_hmac_secret = {SECRET}\n",
    f"auth = '{SECRET}'\n",
]


@pytest.mark.parametrize("text", SECRET_FAULTS)
def test_no_message_shows_a_secret_of_the_file(config: Path, text: str) -> None:
    config.write_text(text)
    assert SECRET not in faults_of(config)


@pytest.mark.parametrize("name", ["GATEWAY_AUTH", "GATEWAY_ENGINE", "GATEWAY_ENGINE__REDIS_URL"])
def test_no_message_shows_a_secret_of_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config.write_text("")
    monkeypatch.setenv(name, f"redis://:{SECRET}@h")
    assert SECRET not in faults_of(config)


# The files that are delivered.


def test_development_file_lets_anyone_do_everything_without_a_namespace() -> None:
    settings = read_settings(ROOT / "deploy/config/development.toml")
    assert settings.engine.is_memory
    assert settings.server.page
    assert settings.auth.allow_anonymous
    assert settings.channels == NamespaceSettings(
        history_size=100,
        history_ttl=300.0,
        force_recovery=True,
        allow_subscribe_for_client=True,
        allow_publish_for_subscriber=True,
        allow_publish_for_client=True,
        allow_history_for_subscriber=True,
    )


def test_example_file_shows_the_defaults_and_namespaces() -> None:
    settings = read_settings(ROOT / "deploy/config/example.toml")
    assert sorted(settings.namespaces) == ["chat", "cursor"]
    assert settings.model_copy(update={"namespaces": {}}) == Settings()


EXAMPLE_LEAVES_OUT = {"token_max_bytes", "heartbeat_seconds", "dead_letters_max_bytes"}


def test_example_file_shows_every_other_key() -> None:
    text = (ROOT / "deploy/config/example.toml").read_text()
    missing = [
        f"{section}.{key}"
        for section, field in Settings.model_fields.items()
        if section != "namespaces"
        for key in field.annotation.model_fields  # type: ignore[union-attr]
        if f"{key} = " not in text and key not in EXAMPLE_LEAVES_OUT
    ]
    assert missing == []


def test_reading_leaves_the_environment_as_it_was(config: Path) -> None:
    before = dict(os.environ)
    config.write_text("")
    read_settings(config)
    assert dict(os.environ) == before
