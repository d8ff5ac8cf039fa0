"""Each block of code in docs/jax.md runs as it is written, on two ranks, and its model learns."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("jax", reason="JAX is not installed")

PAGE = (Path(__file__).parents[2] / "docs" / "jax.md").read_text(encoding="utf-8")
USE = """
def use(block):
    names = {}
    exec(block, names)
    run = names["run"]
    assert run.evaluate((names["x"], names["y"]))["accuracy"] > 0.3, block
    values = [array.tolist() for array in run.params.values()]
    assert all(one == values for one in run.group.gather_objects(values)), block
    print("ran", run.group.size)
"""


def test_the_blocks_run_and_leave_all_ranks_with_one_model(door, tmp_path):
    every = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    missing = [name for name in ("flax", "optax", "equinox") if find_spec(name) is None]
    blocks = [block for block in every if not any(f"import {name}" in block for name in missing)]
    assert len(every) == 3 and blocks
    script = tmp_path / "page.py"
    script.write_text(USE + "\n".join(f"use({block!r})" for block in blocks))
    ended = door([script], 2)
    assert ended.status == 0, ended.said
    assert ended.out.splitlines().count("ran 2") == 2 * len(blocks), ended.said
