"""CuPy kernels made from the rules of optim.py, whose bodies are translated to C statement by statement."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from ddl.kernels.cupy_kernels import Fused


@cache
def kernel(rule: Callable[..., Any], arrays: int) -> Fused:
    """kernel(grads, *constants, *state) updates ``state``: the parameters and the slots, ``arrays`` of them."""
    p, g, *others = inspect.signature(rule).parameters
    slots, constants = others[: arrays - 1], others[arrays - 1 :]
    function = ast.parse(inspect.getsource(rule)).body[0]
    assert isinstance(function, ast.FunctionDef)
    code = " ".join(map(_c, function.body[:-1]))  # the last statement returns what has been changed
    return Fused(
        rule.__name__, ", ".join(f"T {x}" for x in [g, *constants]), ", ".join(f"T {x}" for x in [p, *slots]), code
    )


def _c(statement: ast.stmt) -> str:
    """One statement in C; a branch is one statement.

    Python and C agree on arithmetic, comparisons and augmented assignments."""
    if isinstance(statement, ast.If):
        branches = [_c(only) for (only,) in (statement.body, *([statement.orelse] if statement.orelse else []))]
        return f"if ({ast.unparse(statement.test)}) " + " else ".join(branches)
    kind = "T " if isinstance(statement, ast.Assign) else ""  # rules assign new names and augment the others
    return f"{kind}{ast.unparse(statement)};".replace("np.sqrt", "sqrt")
