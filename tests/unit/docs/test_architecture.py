"""docs/architecture.md agrees with the code: its files and names exist, and its table of rooms is the enforced one."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`((?:ddl|tests)/[\w/.]*)(?:: ([\w.]+))?`", TEXT)))
PATHS = ("batch", "gradient", "failure", "setting", "checkpoint")


@cache
def names_in(path: str) -> set[str]:
    """Functions, classes, methods ("Class.method") and variables that a file defines at its top level."""
    names = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names.update(f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
        if isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(("path", "name"), REFERENCES)
def test_each_file_and_name_in_the_map_exists(path, name):
    assert (ROOT / path).exists(), f"docs/architecture.md names {path}, which does not exist"
    assert not name or name in names_in(path), f"{path} does not define {name}"


@pytest.mark.parametrize("subject", PATHS)
def test_each_path_names_at_least_four_functions_or_classes(subject):
    assert len(re.findall(r"`ddl/[\w/.]+: [\w.]+`", section(f"The path of a {subject}"))) >= 4


def test_the_table_of_rooms_is_the_one_the_layout_test_enforces():
    spec = importlib.util.spec_from_file_location("layout", ROOT / "tests" / "test_layout.py")
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section("The rooms"), re.MULTILINE)
    documented = [(room, set(re.findall(r"`(\w+)`", allowed))) for room, allowed in rows]
    assert documented == list(layout.ROOMS.items())
