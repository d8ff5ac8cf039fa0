"""The arrows between rooms: each may import only what its row of the table allows.

A new arrow is a change of the design: change the table with it, or move the code."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddl"

ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors", "launched"},
    "arrays": {"errors"},
    "named": {"errors"},
    "launched": set(),
    "lines": set(),
    "cores": {"launched"},
    "arguments": {"errors", "launched"},
    "data": {"errors", "arrays", "lines", "named"},
    "nn": {"errors", "arrays"},
    "models": {"errors", "arrays", "named", "nn"},
    "optim": {"errors", "arrays"},
    "comm": {"errors", "arrays", "launched"},
    "collectives": {"errors", "arrays", "comm"},
    "parallel": {"errors", "arrays", "comm", "collectives"},
    "checkpoint": {"errors", "arrays"},
    "fault": {"errors", "arrays", "data", "comm", "checkpoint", "launched"},
    "metrics": {"errors", "lines"},
}
LOWER = set(ROOMS)
ROOMS["train"] = LOWER
ROOMS["bench"] = LOWER | {"train", "mpirun"}
# The supervisor outlives MPI, and the doctor comes before it: they start without the rooms that compute.
# What the doctor opens for its self-test, and says about the launch and the GPU, it imports inside functions.
LIGHT: dict[str, set[str]] = {
    "launch": {"arguments", "errors", "config", "metrics", "mpirun", "supervisor"},
    "supervisor": {"errors", "config", "metrics", "mpirun"},
    "mpirun": {"errors", "config", "metrics"},
    "doctor": {"errors", "launched", "metrics", "parameters"},
    "parameters": {"errors"},
    "__main__": set(),
}
FOREIGN = {  # package -> the only places that may import it
    "cupy": {"arrays"},
    "cupyx": {"arrays"},
    "mpi4py": {"comm"},
    "torch": {"models", "bench"},
    "jax": {"models"},
    "numba": {"arrays", "optim", "nn"},
}


@cache
def imports(path: Path, nested: bool = True) -> set[str]:
    """Modules that a file imports, ``ddl.room`` for those of our own; nested: inside functions as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if nested else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"ddl.{a.name}" for a in node.names} if node.module == "ddl" else {node.module or ""}
    return found


def rooms_of(modules: set[str]) -> set[str]:
    return {m.split(".")[1] for m in modules if m.startswith("ddl.") and m.split(".")[1] in known_rooms()}


def known_rooms() -> set[str]:
    return {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


def files(room: str) -> list[Path]:
    return [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_its_row_allows(room):
    for path in files(room):
        strangers = rooms_of(imports(path)) - ROOMS[room] - {room}
        assert not strangers, f"{path.relative_to(ROOT)} imports {sorted(strangers)}"


@pytest.mark.parametrize("door", sorted(LIGHT))
def test_a_light_door_starts_without_the_rooms_that_compute(door):
    for path in files(door):
        strangers = rooms_of(imports(path, nested=False)) - LIGHT[door] - {door}
        assert not strangers, f"{path.relative_to(ROOT)} imports {sorted(strangers)}"


@pytest.mark.parametrize("package", sorted(FOREIGN))
def test_a_foreign_package_is_imported_in_its_room_alone(package):
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if any(module.split(".")[0] == package for module in imports(path)):
            assert room in FOREIGN[package], f"{path.relative_to(ROOT)} imports {package}"


def test_every_folder_of_the_package_is_a_room_of_the_table():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(ROOMS)
    assert all((PACKAGE / room / "__init__.py").exists() for room in folders), (
        "a room without __init__.py is not packed"
    )


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
