"""The floor plan: which room may import which, and that no import cycle exists, between rooms or inside one.

A new arrow changes the design: change the table here and the one in docs/architecture.md with it, or move the code."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddl"

# room -> the rooms it may import; only rooms of earlier rows.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "environment": set(),
    "early_signals": set(),
    "jsonlines": set(),
    "output": set(),
    "reading": set(),
    "wording": set(),
    "registry": {"errors", "wording"},
    "arrays": {"errors"},
    "kernels": {"errors", "arrays"},
    "config": {"errors", "version", "environment", "reading", "registry", "wording"},
    "metrics": {"errors", "version", "jsonlines", "output", "reading", "wording"},
    "launcher": {"errors", "environment", "reading", "wording", "config", "metrics"},
    "data": {"errors", "arrays", "jsonlines", "kernels", "reading", "registry", "wording"},
    "nn": {"errors", "arrays", "kernels"},
    "models": {"errors", "wording", "arrays", "kernels", "registry", "nn"},
    "export": {"errors", "kernels", "data", "nn", "models"},
    "optim": {"errors", "wording", "arrays", "kernels"},
    "comm": {"errors", "environment", "arrays"},
    "collectives": {"errors", "wording", "registry", "arrays", "kernels", "comm"},
    "parallel": {"errors", "arrays", "kernels", "comm", "collectives"},
    "pipeline": {"errors", "wording", "arrays", "nn", "models", "comm", "collectives"},
    "checkpoint": {"errors", "arrays", "reading"},
    "fault": {"errors", "environment", "reading", "wording", "arrays", "data", "comm", "checkpoint"},
    "train": {
        *(
            "errors",
            "wording",
            "environment",
            "early_signals",
            "reading",
            "registry",
            "arrays",
            "kernels",
            "config",
            "metrics",
            "data",
            "nn",
            "models",
            "export",
        ),
        *("optim", "comm", "collectives", "parallel", "pipeline", "checkpoint", "fault"),
    },
}
ROOMS["run"] = set(ROOMS) - {"launcher"}
ROOMS["compress"] = {"errors", "arrays", "comm", "data", "export", "metrics", "models", "nn", "run", "train"}
ROOMS["watch"] = {"errors", "environment", "output", "reading", "wording", "metrics", "launcher"}
ROOMS["dashboard"] = {*ROOMS["watch"], "watch"}
ROOMS["elastic"] = {"errors", "environment", "wording", "arrays", "metrics", "data", "comm", "collectives", "fault"}
ROOMS["world"] = {"errors", "wording", "arrays", "comm", "collectives", "optim", "fault"}
ROOMS["torch"] = {"errors", "environment", "registry", "arrays", "kernels", "data", "nn", "models", "optim", "comm"}
ROOMS["torch"] |= {"wording", "collectives", "fault", "elastic", "world"}
ROOMS["jax"] = {"errors", "registry", "arrays", "nn", "models", "optim"}
ROOMS["sweep"] = {"errors", "reading", "wording", "config", "launcher"}
ROOMS["bench"] = set(ROOMS) - {"compress", "elastic", "world", "jax", "watch", "dashboard", "sweep"}
# Doors parse arguments and open what they need. The supervisor outlives MPI and the doctor comes before it: their
# doors start without the rooms that compute, and import what they open for a self-test inside functions.
DOORS = (
    "audit",
    "doctor",
    "evaluate",
    "launch",
    "predict",
    "__main__",
    "train.__main__",
    "export.__main__",
    "bench.__main__",
    "compress.__main__",
)
DOORS += ("watch.__main__", "dashboard.__main__", "sweep.__main__")
LIGHT: dict[str, set[str]] = {
    "launch": {"config", "early_signals", "errors", "launcher", "environment", "metrics", "output"},
    "doctor": {"errors", "environment", "launcher", "metrics", "output", "wording"},
    "__main__": {"wording", "version", "output"},
}
FOREIGN = {  # package -> the only places that may import it
    "cupy": {"arrays", "kernels"},
    "cupyx": {"arrays", "kernels"},
    "mpi4py": {"comm", "bench.stock_mpi"},
    "torch": {"torch", "bench"},
    "jax": {"jax"},
    "numba": {"kernels"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name below ``ddl`` -> file; a package is named by its folder, ddl/__init__.py by ""."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imports(path: Path, nested: bool = True) -> set[str]:
    """Modules that a file imports; nested: inside functions as well. Imports for type checkers alone do not count."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not nested:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are absolute"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    found.add(whole if whole.removeprefix("ddl.") in modules() else child.module or "")
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def own(names: set[str]) -> set[str]:
    """The modules of ddl among ``names``, without the leading "ddl."."""
    return {name.removeprefix("ddl").removeprefix(".") for name in names if name.split(".")[0] == "ddl"}


def room_of(module: str) -> str:
    return module.split(".")[0]


def inside(room: str) -> dict[str, Path]:
    return {name: path for name, path in modules().items() if room_of(name) == room and name not in DOORS}


def test_each_module_is_in_a_room_or_is_a_door():
    strangers = [name for name in modules() if name and name not in DOORS and room_of(name) not in ROOMS]
    assert not strangers
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py and would not be packed"


def test_rooms_are_listed_from_the_bottom_up():
    seen: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= seen, f"{room} may import {sorted(allowed - seen)}, listed above it"
        seen.add(room)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_in_its_row(room):
    for name, path in inside(room).items():
        strangers = {room_of(module) for module in own(imports(path))} - ROOMS[room] - {room}
        assert not strangers, f"{name} imports {sorted(strangers)}"


def test_no_module_takes_part_in_an_import_cycle():
    arrows = {name: own(imports(path)) & set(modules()) - {name} for name, path in modules().items()}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for other in sorted(arrows[name]):
                visit(other, (*path, name))
            finished.add(name)

    for name in sorted(arrows):
        visit(name, ())


@pytest.mark.parametrize("door", sorted(LIGHT))
def test_a_light_door_starts_without_the_rooms_that_compute(door):
    strangers = {room_of(name) for name in own(imports(modules()[door], nested=False))} - LIGHT[door]
    assert not strangers, f"{door} imports {sorted(strangers)}"


@pytest.mark.parametrize("package", sorted(FOREIGN))
def test_a_foreign_package_is_imported_only_in_its_room(package):
    for name, path in modules().items():
        if any(module.split(".")[0] == package for module in imports(path)):
            assert {room_of(name), name} & FOREIGN[package], f"{name} imports {package}"


def test_test_files_have_unique_names():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# Two front doors take the user's settings as keyword arguments; an entry that is no longer needed fails the test.
MANY_PARAMETERS = {
    "run/trainer.py: __init__",
    "data/dataset.py: open_dataset",
}


def test_files_have_at_most_400_lines():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files().items()}
    assert not {name for name, length in lengths.items() if length > 400}


def test_functions_have_at_most_8_parameters():
    found = set()
    for name, path in files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([one for one in arguments if one.arg not in ("self", "cls")]) > 8:
                    found.add(f"{name}: {node.name}")
    assert found == MANY_PARAMETERS


def files() -> dict[str, Path]:
    return {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
