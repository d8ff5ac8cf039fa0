"""Every setting is read by something: one that nobody reads would promise what does not happen."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import ddl
from ddl.config.sections import SECTIONS

ROOT = Path(ddl.__file__).parent


def read_in(path: Path) -> set[tuple[str, str]]:
    """(name before the dot, name after it) of every attribute, and ("", text) of every string."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Attribute, ast.Name)):
            before = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
            found.add((before, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(("", node.value))
    return found


def test_every_setting_is_read():
    readers = [*(ROOT / "train").glob("*.py"), *(ROOT / "run").glob("*.py"), *ROOT.glob("*.py")]
    read = set().union(*(read_in(path) for path in readers if path.name != "trainer.py"))
    unread = [
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in fields(kind)
        # A function may call its section "settings"; an optimizer's own options are picked by name.
        if not {(section, field.name), ("settings", field.name)} & read
        and not (section == "optim" and ("", field.name) in read)
    ]
    assert unread == []
