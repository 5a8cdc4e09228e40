"""Writes docs/configuration.md from gateway/settings.py. `python docs/make_configuration.py`; tests compare the two."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from gateway.settings import ENV_PREFIX, NamespaceSettings, Settings

REFERENCE = Path(__file__).with_name("configuration.md")

_HEAD = """\
# Configuration

Made from `gateway/settings.py` by `docs/make_configuration.py`; do not edit.

Settings come from a TOML file (`--config FILE` or `GATEWAY_CONFIG=FILE`) and from environment variables over it:
`{prefix}` and the path of the key, levels joined by `__`. `client.frame_max_bytes` in the file is

```toml
[client]
frame_max_bytes = 65536
```

and in the environment `{prefix}CLIENT__FRAME_MAX_BYTES=65536`. Durations are seconds; a string with a unit (`"300s"`,
`"5m"`, `"24h"`) is taken too. A wrong or unknown key stops the start with one line that names it; `gateway check`
says so without starting. `deploy/config/example.toml` is a commented file to begin with.
"""


def reference() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD.format(prefix=ENV_PREFIX), *_sections()])


def _sections() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if section is NamespaceSettings:
                continue
            yield f"## `[{name}]`\n\n{section.__doc__}\n"
            yield _table(section)
    yield f"## `[channels]` and `[namespaces.NAME]`\n\n{NamespaceSettings.__doc__}\n"
    yield "`[channels]` holds for channels without a `:` in their name, `[namespaces.chat]` for `chat:…`."
    yield "A channel whose namespace is not configured does not exist (error 102).\n"
    yield _table(NamespaceSettings)


def _table(section: type[BaseModel]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        rows.append(f"| `{name}` | {_type(field)} | `{_default(field.default)}` | {field.description} |")
    return "\n".join(rows) + "\n"


def _type(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list of strings"
    names = {str: "string", int: "integer", bool: "boolean", float: "number", SecretStr: "secret string"}
    bounds = [
        f"{sign} {_number(value)}"
        for sign, attribute in ((">", "gt"), ("≥", "ge"), ("≤", "le"))
        for constraint in field.metadata
        if (value := getattr(constraint, attribute, None)) is not None
    ]
    return ", ".join([names[annotation], *bounds])


def _default(value: object) -> str:
    match value:
        case SecretStr():
            return '""'
        case bool():
            return str(value).lower()
        case float():
            return _number(value)
        case str():
            return f'"{value}"'
        case tuple():
            return "[]"
    return str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"wrote {REFERENCE.name}\n")
