"""Logs go to standard error, one line an event, for people or for machines; libraries keep quiet."""

import json
import subprocess
import sys

import pytest

STYLES = [("json", "debug"), ("json", "info"), ("json", "warning"), ("json", "error"), ("human", "debug")]
SCRIPT = """
import logging, sys, structlog
from gateway.log import configure_logs
from gateway.settings import LogSettings

for style, level in [line.split() for line in sys.argv[1:]]:
    print(f"== {style} {level}", file=sys.stderr)
    configure_logs(LogSettings(format=style, level=level))
    log = structlog.get_logger("test")
    log.debug("whispered")
    log.info("said", client="c1", text="a\\nb")
    log.error("shouted")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")
    logging.getLogger("uvicorn.error").info('"WebSocket /socket?token=secret" [accepted]')
    logging.getLogger("uvicorn.error").warning("uvicorn warns of secret")
    logging.getLogger("aio_pika").warning("aio_pika warns of secret")
    logging.getLogger("another").warning("another library warns")
"""


@pytest.fixture(scope="module")
def logs() -> dict[str, list[str]]:
    """What was logged with each style and level, in a process of its own: the configuration is the process's."""
    command = [sys.executable, "-c", SCRIPT, *[f"{style} {level}" for style, level in STYLES]]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "", "standard output is for whoever started us"
    sections = result.stderr.split("== ")[1:]
    return {section.splitlines()[0]: section.splitlines()[1:] for section in sections}


def test_json_logs_are_one_object_a_line(logs: dict[str, list[str]]) -> None:
    events = [json.loads(line) for line in logs["json info"]]
    assert [(event["event"], event["level"]) for event in events] == [
        ("said", "info"),
        ("shouted", "error"),
        ("failed", "error"),
        ("another library warns", "warning"),
    ]
    assert (events[0]["client"], events[0]["text"]) == ("c1", "a\nb")
    assert events[0]["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in events[2]["exception"]


@pytest.mark.parametrize(("level", "events"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 2)])
def test_level_is_the_least_that_is_written(logs: dict[str, list[str]], level: str, events: int) -> None:
    ours = [line for line in logs[f"json {level}"] if "logger" not in json.loads(line)]
    assert len(ours) == events


def test_human_logs_are_words_in_a_line(logs: dict[str, list[str]]) -> None:
    (said,) = [line for line in logs["human debug"] if " said " in line]
    assert "client=c1" in said
    assert "\x1b" not in "".join(logs["human debug"]), "colours where no person looks"


def test_libraries_warn_but_not_those_that_would_log_tokens(logs: dict[str, list[str]]) -> None:
    for lines in logs.values():
        assert [line for line in lines if "another library warns" in line]
        assert not [line for line in lines if "secret" in line]
