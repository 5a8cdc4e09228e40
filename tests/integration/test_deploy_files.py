"""The files of the compose stack fit together, and fit the code. Bringing the stack up is `make up`."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.metrics import NodeMetrics, RelayMetrics
from gateway.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DASHBOARD = ROOT / "deploy/grafana/dashboards/gateway.json"
RULES = ROOT / "deploy/prometheus/rules.yml"
SUFFIXES = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}


def exposed_names() -> set[str]:
    """The name of every series that a node or a relay exposes."""
    metrics = [metric for kind in (NodeMetrics, RelayMetrics) for metric in kind().registry.collect()]
    return {metric.name + suffix for metric in metrics for suffix in SUFFIXES[metric.type]}


def queried_names(text: str) -> set[str]:
    """The series of the gateway's own that PromQL expressions in `text` ask for."""
    return set(re.findall(r"\bgateway_[a-z_]+\b", text))


def expressions(panels: list[dict[str, object]]) -> Iterator[str]:
    """Every PromQL expression of a dashboard's panels."""
    for panel in panels:
        targets = panel.get("targets", [])
        assert isinstance(targets, list)
        yield from (target["expr"] for target in targets)


def compose_lists(key: str) -> Iterator[str]:
    """The items of every block list `key:` in the compose file, unquoted."""
    for block in re.findall(rf"^ +{key}:\n((?: +- .+\n| +#.*\n)+)", COMPOSE, re.MULTILINE):
        yield from (item.strip("\"'") for item in re.findall(r"- (.+)", block))


def test_dashboard_and_rules_ask_only_for_series_that_exist() -> None:
    asked = queried_names("\n".join(expressions(json.loads(DASHBOARD.read_text())["panels"])))
    assert len(asked) > 15
    assert asked <= exposed_names()

    asked = queried_names("\n".join(re.findall(r"expr: (.+)", RULES.read_text())))
    assert len(asked) > 4
    assert asked <= exposed_names()


def test_dashboard_shows_every_series_but_sums_of_seconds() -> None:
    asked = queried_names("\n".join(expressions(json.loads(DASHBOARD.read_text())["panels"])))
    hidden = {name for name in exposed_names() - asked if not name.endswith(("_seconds_sum", "_seconds_count"))}
    assert hidden <= {"gateway_batch_publications_sum", "gateway_batch_publications_count"}


def test_dashboard_uses_the_provisioned_datasource() -> None:
    provisioned = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    uids = set(re.findall(r'"uid": "(\w+)"', json.dumps(json.loads(DASHBOARD.read_text())["panels"])))
    assert uids == set(re.findall(r"^ +uid: (\w+)$", provisioned, re.MULTILINE))


def test_prometheus_accepts_its_files() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: install Debian's package prometheus"
    result = subprocess.run(
        [promtool, "check", "config", ROOT / "deploy/prometheus/prometheus.yml"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rule files found" in result.stdout


def test_only_three_services_are_published_and_only_on_loopback() -> None:
    ports = list(compose_lists("ports"))
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_]+:-\d+\}:\d+", port) for port in ports), ports
    assert len(re.findall(r"^\s*ports:", COMPOSE, re.MULTILINE)) == 3
    assert "network_mode" not in COMPOSE


def test_what_is_mounted_exists() -> None:
    sources = [re.sub(r"^\$\{\w+:-(.+)\}", r"\1", item).split(":")[0] for item in compose_lists("volumes")]
    mounted = {source for source in sources if source.startswith("./")}
    assert len(mounted) > 8
    # Docker would make a folder of what is missing. The certificates may be: the stack then serves no TLS.
    assert [source for source in mounted - {"./deploy/certs"} if not (ROOT / source).exists()] == []


def test_secrets_come_from_outside() -> None:
    example = (ROOT / ".env.example").read_text()
    secrets = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    assert set(secrets.values()) == {"change-me"}
    assert set(re.findall(r"\$\{(\w+):\?", COMPOSE)) == set(secrets)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()

    optional = set(re.findall(r"^#(\w+)=", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+):-", COMPOSE)) == optional

    for value in re.findall(r"(?im)^ +\w*(?:pass|password|secret|auth): (.+)", COMPOSE):
        assert value.startswith("${"), value
    assert not re.search(r"://[^$/\s]*:[^$/@\s]+@", COMPOSE), "a password in a URL"


def test_nodes_and_relays_accept_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {name: value.strip('"') for name, value in re.findall(r"^ +(GATEWAY_\w+): (.+)$", COMPOSE, re.MULTILINE)}
    assert environ.pop("GATEWAY_CONFIG") == "/etc/gateway/gateway.toml"
    for name, value in environ.items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:\?[^}]*\}", "secret", value))
    settings = read_settings(ROOT / "deploy/config/development.toml")
    assert settings.engine.redis_url.get_secret_value() == "redis://:secret@redis:6379/0"
    assert settings.engine.rabbitmq_url.get_secret_value() == "amqp://gateway:secret@rabbitmq:5672/"
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8000)
    assert (settings.relay.host, settings.relay.port) == ("0.0.0.0", 9000)

    server = settings.server
    drain = server.drain_delay_seconds + server.drain_seconds + server.shutdown_timeout_seconds
    (grace,) = re.findall(r"x-app:.*?stop_grace_period: (\d+)s.*?\n\n", COMPOSE, re.DOTALL)
    assert int(grace) > drain + 2


@pytest.mark.parametrize("directive", ["name:", "include:", "version:", "configs:"])
def test_compose_file_keeps_to_what_old_and_new_versions_know(directive: str) -> None:
    assert not re.search(rf"^{directive}", COMPOSE, re.MULTILINE)
    assert not re.search(r"start_interval|dockerfile_inline|!reset|\$\{\w+:\+", COMPOSE)
