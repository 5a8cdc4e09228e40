"""The import direction of DESIGN.md, held for the whole source; and the checker itself, tried on planted trees."""

from pathlib import Path

import pytest

from tests.unit.import_rules import Imports, crossings, find_cycle, importers, read_imports

ROOT = Path(__file__).resolve().parents[2]

# In the order of the way of a message: a module imports only from lines above its own.
LAYERS = [
    {"gateway", "gateway.protocol", "gateway.protocol.codes", "gateway.protocol.messages"},
    {"gateway.protocol.json", "gateway.settings", "gateway.timers", "gateway.lifecycle"},
    {"gateway.metrics", "gateway.log", "gateway.limits", "gateway.auth", "gateway.channels", "gateway.recovery"},
    {"gateway.outbox", "gateway.api"},
    {"gateway.followed", "gateway.publisher"},
    {"gateway.hub"},
    {"gateway.subscriptions"},
    {"gateway.session"},
    {"gateway.transports", "gateway.transports.frames"},
    {"gateway.transports.websocket"},
    {"gateway.app"},
    {"gateway.server"},
    {"gateway.cli"},
    {"gateway.__main__"},
]

SOLE_IMPORTERS = [
    ("redis", {"broker.redis"}),
    ("aio_pika", {"broker.rabbitmq"}),
    ("aiormq", {"broker.rabbitmq"}),
    ("uvicorn", {"gateway.server", "gateway.transports.frames"}),
    ("websockets", {"gateway.transports.frames"}),
    ("starlette", {"gateway.api", "gateway.app", "gateway.server", "gateway.transports.websocket"}),
    ("prometheus_client", {"gateway.metrics"}),
    ("pydantic", {"gateway.settings"}),
    ("pydantic_settings", {"gateway.settings"}),
    ("jwt", {"gateway.auth"}),
    ("typer", {"gateway.cli"}),
]


@pytest.fixture(scope="module")
def source() -> Imports:
    imports = read_imports(ROOT, ["broker", "gateway"])
    assert len(imports) > 30, "the source was not found"
    return imports


def test_source_has_no_import_cycle(source: Imports) -> None:
    assert find_cycle(source) == []


def test_broker_never_imports_gateway(source: Imports) -> None:
    assert crossings(source, "broker", "gateway") == []
    assert crossings(source, "gateway", "broker") != [], "the checker sees nothing"


@pytest.mark.parametrize(("library", "allowed"), SOLE_IMPORTERS)
def test_library_stops_at_its_adapter(source: Imports, library: str, allowed: set[str]) -> None:
    assert importers(source, library) == allowed


@pytest.mark.parametrize("transport", ["gateway.transports", "starlette", "uvicorn", "websockets"])
def test_session_knows_no_transport(source: Imports, transport: str) -> None:
    reached, waiting = {"gateway.session"}, ["gateway.session"]
    while waiting:
        fresh = source.get(waiting.pop(), set()) - reached
        reached |= fresh
        waiting.extend(fresh)
    assert "gateway.hub" in reached
    assert not [module for module in reached if module == transport or module.startswith(f"{transport}.")]


def test_modules_import_only_from_layers_above_their_own(source: Imports) -> None:
    layer_of = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    assert {module for module in source if module.startswith("gateway")} == set(layer_of), "LAYERS is out of date"
    wrong = [
        f"{module} -> {imported}"
        for module, number in layer_of.items()
        for imported in source[module]
        if imported in layer_of and layer_of[imported] >= number
    ]
    assert wrong == []


# The checker.


def plant(root: Path, files: dict[str, str]) -> Imports:
    """Write a source tree and read its imports."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_imports(root, ["broker", "gateway"])


CYCLES = [
    ("plain", "import gateway.b\n", "import gateway.a\n"),
    ("from package", "from gateway import b\n", "from gateway import a\n"),
    ("from module", "from gateway.b import x\n", "from gateway.a import y\n"),
    ("relative", "from . import b\n", "from .a import y\n"),
    ("in a function", "def f():\n    import gateway.b\n", "import gateway.a\n"),
    (
        "for type checking",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gateway.b import x\n",
        "from gateway import a\n",
    ),
    ("as another name", "import gateway.b as c\n", "from gateway import a as d\n"),
    ("in try", "try:\n    import gateway.b\nexcept ImportError:\n    pass\n", "class C:\n    import gateway.a\n"),
]


@pytest.mark.parametrize(("first", "second"), [cycle[1:] for cycle in CYCLES], ids=[cycle[0] for cycle in CYCLES])
def test_checker_sees_a_cycle(tmp_path: Path, first: str, second: str) -> None:
    imports = plant(tmp_path, {"gateway/__init__.py": "", "gateway/a.py": first, "gateway/b.py": second})
    assert find_cycle(imports) == ["gateway.a", "gateway.b", "gateway.a"]


def test_checker_sees_a_cycle_through_packages_and_other_modules(tmp_path: Path) -> None:
    files = {
        "gateway/__init__.py": "",
        "gateway/a.py": "from gateway.inner.b import x\n",
        "gateway/inner/__init__.py": "",
        "gateway/inner/b.py": "from ..c import y\n",
        "gateway/c.py": "import gateway.a\n",
        "gateway/d.py": "import gateway.a\nimport gateway.c\n",
    }
    cycle = ["gateway.a", "gateway.inner.b", "gateway.c", "gateway.a"]
    assert find_cycle(plant(tmp_path, files)) == cycle


def test_checker_sees_a_package_that_imports_its_own_part_which_imports_it(tmp_path: Path) -> None:
    files = {"gateway/__init__.py": "from .a import x\n", "gateway/a.py": "import gateway\n"}
    assert find_cycle(plant(tmp_path, files)) == ["gateway", "gateway.a", "gateway"]


def test_checker_passes_a_tree_without_cycle(tmp_path: Path) -> None:
    files = {
        "gateway/__init__.py": "",
        "gateway/a.py": "from gateway import b, c\nimport os.path\n",
        "gateway/b.py": "import gateway.c\n# import gateway.a\n",
        "gateway/c.py": "'''import gateway.a'''\n",
    }
    imports = plant(tmp_path, files)
    assert find_cycle(imports) == []
    assert imports["gateway.a"] == {"gateway.b", "gateway.c", "os"}


def test_checker_sees_what_crosses_packages_the_wrong_way(tmp_path: Path) -> None:
    files = {
        "broker/__init__.py": "",
        "broker/a.py": "def f():\n    from gateway.settings import Settings\n",
        "gateway/__init__.py": "",
        "gateway/settings.py": "import broker.a\n",
        "gateway/brokerage.py": "import broker_of_another\n",
    }
    imports = plant(tmp_path, files)
    assert crossings(imports, "broker", "gateway") == ["broker.a -> gateway.settings"]
    assert crossings(imports, "gateway", "broker") == ["gateway.settings -> broker.a"]


def test_checker_tells_a_library_from_our_module_of_that_name(tmp_path: Path) -> None:
    files = {
        "broker/__init__.py": "",
        "broker/redis.py": "import redis.asyncio as redis_asyncio\n",
        "broker/engine.py": "from broker.redis import open\nfrom . import redis\n",
        "gateway/__init__.py": "",
        "gateway/leak.py": "def f():\n    from redis.exceptions import RedisError\n",
    }
    assert importers(plant(tmp_path, files), "redis") == {"broker.redis", "gateway.leak"}
