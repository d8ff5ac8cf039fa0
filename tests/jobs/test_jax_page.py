"""Each block of code in docs/jax.md runs as it is written, on two ranks, and its model learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    for package in ("jax", "flax", "optax", "equinox"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    script = tmp_path / "page.py"
    script.write_text(USE + "\n".join(f"use({block!r})" for block in blocks))
    ended = door([script], 2)
    assert ended.status == 0, ended.said
    assert ended.out.splitlines().count("ran 2") == 2 * len(blocks), ended.said
