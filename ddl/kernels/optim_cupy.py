"""CuPy kernels made from the rules of optim.py, whose bodies are translated to C statement by statement."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

from ddl.kernels.cupy_kernels import Fused


@cache
def kernel(rule: Callable[..., Any], arrays: int) -> Fused:
    """kernel(grads, *constants, *state) updates ``state``: the parameters and the slots, ``arrays`` of them."""
    function = ast.parse(inspect.getsource(rule)).body[0]
    assert isinstance(function, ast.FunctionDef)
    # The first statements name the slots and the constants; the last one returns what has been changed.
    head, body = function.body[: 1 + (arrays > 1)], function.body[1 + (arrays > 1) : -1]
    *slots, constants = map(_names, head)
    read, changed = ["g", *constants], ["p", *chain(*slots)]
    return Fused(
        rule.__name__,
        ", ".join(f"T {name}" for name in read),
        ", ".join(f"T {name}" for name in changed),
        " ".join(map(_c, body)),
    )


def _names(statement: ast.stmt) -> list[str]:
    """The names that an assignment gives."""
    assert isinstance(statement, ast.Assign)
    return [node.id for node in ast.walk(statement.targets[0]) if isinstance(node, ast.Name)]


def _c(statement: ast.stmt) -> str:
    """One statement in C; a branch is one statement.

    Python and C agree on arithmetic, comparisons and augmented assignments."""
    if isinstance(statement, ast.If):
        branches = [_c(only) for (only,) in (statement.body, *([statement.orelse] if statement.orelse else []))]
        return f"if ({ast.unparse(statement.test)}) " + " else ".join(branches)
    kind = "T " if isinstance(statement, ast.Assign) else ""  # rules assign new names and augment the others
    return f"{kind}{ast.unparse(statement)};".replace("np.sqrt", "sqrt")
