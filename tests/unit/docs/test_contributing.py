"""CONTRIBUTING.md agrees with the code: its files exist, and every recipe has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"\b(?:ddl|tests|docs|launch)/[\w/]+\.\w+", TEXT)))
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/unit/recipes").glob("test_*.py"))


@pytest.mark.parametrize("path", PATHS)
def test_each_file_that_contributing_names_exists(path):
    assert (ROOT / path).exists(), f"CONTRIBUTING.md names {path}, which does not exist"


def test_each_recipe_names_its_test_and_each_test_has_its_recipe():
    assert [path for path in PATHS if path.startswith("tests/unit/recipes/")] == RECIPES
