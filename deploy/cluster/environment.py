"""What the servers of the cluster inherit from this program: its environment, and the programs of this machine."""

import os
import shutil
from pathlib import Path

from deploy.cluster.processes import ProcessError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

SETTINGS_PREFIX = "GATEWAY_"

_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def inherited() -> dict[str, str]:
    """This program's environment without settings of a gateway: what a test sets for itself is not for the cluster."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(SETTINGS_PREFIX)}


def program(name: str) -> str:
    """Return the path of a program, also of one in the folders for administrators.

    Raises ProcessError when it is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}")
    if path is None:
        raise ProcessError(f"{name} is not installed; `make test` installs what the cluster needs on Debian")
    return path
