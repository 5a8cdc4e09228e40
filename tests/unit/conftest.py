"""What holds for every unit test: no settings leak in from outside, and property tests are judged by results alone."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Without a deadline: a busy machine is not a failure. Fixtures of ours hold no state between two examples.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("GATEWAY_"):
            monkeypatch.delenv(name)
