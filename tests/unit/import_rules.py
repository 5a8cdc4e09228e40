"""Who imports whom, read from the source with `ast`: imports inside functions and under TYPE_CHECKING count too."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Imports = dict[str, set[str]]
"""Module → the modules it imports, by full name: ours as modules, others by their top-level package."""


def read_imports(root: Path, packages: Iterable[str]) -> Imports:
    """Return the imports of every module of these packages below `root`."""
    paths = {_module_name(path, root): path for package in packages for path in (root / package).rglob("*.py")}
    return {
        module: set(_imports(ast.parse(path.read_text(), str(path)), module, path.name == "__init__.py", paths))
        for module, path in paths.items()
    }


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, module: str, is_package: bool, known: Mapping[str, object]) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield _resolve(alias.name, known)
            case ast.ImportFrom(module=source, names=names, level=level):
                base = _base(module, is_package, level, source)
                for alias in names:
                    name = f"{base}.{alias.name}"  # from package import module, or from module import name
                    yield name if name in known else _resolve(base, known)


def _base(module: str, is_package: bool, level: int, source: str | None) -> str:
    """Return the module that a relative import starts from."""
    if not level:
        return source or ""
    parts = module.split(".")
    kept = len(parts) - level + is_package
    return ".".join([*parts[:kept], *([source] if source else [])])


def _resolve(name: str, known: Mapping[str, object]) -> str:
    return name if name in known else name.split(".")[0]


def find_cycle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of an import cycle, the first repeated at the end; empty when there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(imports.get(module, ())):
            cycle = visit(imported, [*path, module])
            if cycle:
                return cycle
        done.add(module)
        return []

    for module in sorted(imports):
        cycle = visit(module, [])
        if cycle:
            return cycle
    return []


def crossings(imports: Mapping[str, set[str]], package: str, forbidden: str) -> list[str]:
    """Return every import of `forbidden`, or of a module in it, by a module of `package`: `importer -> imported`."""
    return sorted(
        f"{module} -> {imported}"
        for module, targets in imports.items()
        for imported in targets
        if _is_within(module, package) and _is_within(imported, forbidden)
    )


def importers(imports: Mapping[str, set[str]], target: str) -> set[str]:
    """Return the modules that import `target` or a module in it."""
    return {module for module, targets in imports.items() if any(_is_within(one, target) for one in targets)}


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
