"""The command line: what it prints, and the exit code when the settings are wrong."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway import __version__
from gateway.auth import Authenticator
from gateway.cli import app

ROOT = Path(__file__).resolve().parents[3]
SECRET = "a secret of at least 32 bytes, as RFC 7518 wants it"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"[auth]\ntoken_hmac_secret = '{SECRET}'\n[namespaces.b]\n[namespaces.a]\n")
    return path


def test_version_is_printed() -> None:
    result = run("version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


def test_check_says_what_the_settings_make_of_the_process(config: Path) -> None:
    result = run("check", "--config", config)
    assert result.exit_code == 0
    assert result.stdout == "settings are valid: engine memory (one node, nothing durable); namespaces: a, b\n"


def test_check_of_a_cluster_shows_no_secrets(config: Path) -> None:
    config.write_text(f"[engine]\nredis_url='redis://:{SECRET}@h'\nrabbitmq_url='amqp://u:{SECRET}@h'\n")
    result = run("check", "-c", config)
    assert result.stdout == "settings are valid: engine redis + rabbitmq; namespaces: none\n"


@pytest.mark.parametrize("command", [["serve"], ["relay"], ["check"], ["token", "42"]])
def test_wrong_settings_are_one_line_on_standard_error_and_exit_code_2(command: list[str], config: Path) -> None:
    config.write_text("[server]\nprot = 1\n")
    result = run(*command, "--config", config)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "gateway: server.prot: unknown key\n"


def test_missing_file_is_named(tmp_path: Path) -> None:
    result = run("check", "--config", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "none.toml: No such file or directory" in result.stderr


def test_environment_wins(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_CONFIG", str(config))
    monkeypatch.setenv("GATEWAY_NAMESPACES__c__relay", "direct")
    assert run("check").stdout.endswith("namespaces: a, b, c\n")


def test_relay_has_nothing_to_do_for_the_memory_engine(config: Path) -> None:
    result = run("relay", "--config", config)
    assert result.exit_code == 2
    assert result.stderr.startswith("gateway: engine.redis_url and engine.rabbitmq_url are not set")


@pytest.mark.parametrize(("arguments", "lifetime"), [([], 3600), (["--ttl", "60"], 60)])
def test_token_lets_its_user_in_until_it_expires(config: Path, arguments: list[str], lifetime: int) -> None:
    result = run("token", "42", "--config", config, *arguments)
    assert result.exit_code == 0
    identity = authenticated(result.stdout.strip())
    assert identity.user == "42"
    assert abs(identity.expires - time.time() - lifetime) < 30


def authenticated(token: str):  # type: ignore[no-untyped-def]
    """Who the token says it is."""
    return Authenticator(SECRET, allow_anonymous=False, token_max_bytes=8192, clock=time.time).authenticate(token)


def test_token_without_ttl_never_expires(config: Path) -> None:
    assert authenticated(run("token", "42", "--config", config, "--ttl", "0").stdout.strip()).expires == 0


def test_token_needs_a_secret(config: Path) -> None:
    config.write_text("")
    result = run("token", "42", "--config", config)
    assert result.exit_code == 2
    assert result.stderr == "gateway: auth.token_hmac_secret is not set\n"


@pytest.mark.parametrize("arguments", [["dance"], ["serve", "--loud"], ["token"], ["token", "42", "--ttl", "-1"]])
def test_wrong_usage_is_explained_with_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_help_names_every_verb() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(verb in result.stdout for verb in ("serve", "relay", "token", "check", "version"))


def test_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "gateway", "version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == f"{__version__}\n"
